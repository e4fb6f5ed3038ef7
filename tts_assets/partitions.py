"""The one partitions definition: a corpus is a partition, added by the corpora sensor or a job."""

from dagster import DynamicPartitionsDefinition

corpus_partitions = DynamicPartitionsDefinition(name="corpus")
