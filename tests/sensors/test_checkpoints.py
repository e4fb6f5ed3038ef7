"""A new best checkpoint requests serving model and report; a worse one does not."""

from __future__ import annotations

from dagster import AssetKey, DagsterInstance, SensorResult, build_sensor_context

from sensors.checkpoints import build_checkpoint_sensor
from tts_assets.core.artifacts import MANIFEST, ArtifactStore, Build, Checkpoint, ServingModel

CODEC = {"codec": "c", "sample_rate": 16000, "token_rate": 50.0, "codebook_size": 4096}
TRAINED = {"stage": "sft", "recipe": "one", "steps": 1, "tokens": 1, "train_loss": 1.0}
MODEL = {"parameters": 1, "vocabulary": "v", **CODEC}
ASKED = [AssetKey(["serving", "one"]), AssetKey(["report", "one"])]


def train(store: ArtifactStore, seed: int, loss: float | None) -> None:
    build = Build("sft/one", {}, {}, "1", seed=seed)
    result = store.work_folder(build) / "result"
    result.mkdir()
    (result / "model.safetensors").write_text(f"weights {seed}")
    store.publish(Checkpoint, build, result, {**TRAINED, **MODEL, "val_loss": loss})


def serve(store: ArtifactStore) -> None:
    build = Build("serving/one", {"checkpoint": store.current("sft/one")}, {}, "1")
    result = store.work_folder(build) / "result"
    result.mkdir()
    (result / "serving.json").write_text("{}")
    facts = {"recipe": "one", "stage": "sft", "codec_path": "c", **MODEL}
    store.publish(ServingModel, build, result, facts)


def test_only_a_new_best_checkpoint_is_requested(store: ArtifactStore) -> None:
    sensor = build_checkpoint_sensor(["one", "never_trained"], store.root)
    cursor = None

    def tick() -> list[list[AssetKey]]:
        nonlocal cursor
        with (
            DagsterInstance.ephemeral() as instance,
            build_sensor_context(instance=instance, cursor=cursor) as context,
        ):
            result = sensor(context)
        assert isinstance(result, SensorResult)
        cursor = result.cursor
        requests = result.run_requests or ()
        # With a run key Dagster would not ask again for a checkpoint that comes back.
        assert not any(request.run_key for request in requests)
        return [list(request.asset_selection or ()) for request in requests]

    assert tick() == []
    train(store, 1, 2.0)
    assert tick() == [ASKED]
    assert tick() == []  # asked for, whether it succeeds or not
    train(store, 2, 2.1)
    assert tick() == []
    train(store, 3, 1.9)
    assert tick() == [ASKED]
    for folder in sorted(store.folder("sft/one").iterdir())[:2]:
        if folder.resolve() != store.current("sft/one").path:
            (folder / MANIFEST).unlink()  # it is being deleted
    train(store, 4, None)  # no validation: nothing says that it is worse
    serve(store)
    assert tick() == []  # its serving model exists already
