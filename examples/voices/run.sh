#!/usr/bin/env bash
# Two sources of one person, one voice: docs/voices.md, "The story, run". Run it in the project's
# environment; it may be broken off and started again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$here/work
export TTS_PROJECT=$here/dagster_project.toml DAGSTER_HOME=$work/dagster PYTHONPATH=$root
mkdir -p "$DAGSTER_HOME"
cp -n "$root/.dagster/dagster.yaml" "$DAGSTER_HOME/" || true
cd "$root"

say() { printf '\n== %s\n' "$*"; }
wait_for() { # until an asset of a corpus is published by the sensors
  until [ -L "$work/storage/$1/$2/current" ]; do
    kill -0 "$daemon" || { echo "the daemon has ended: $work/daemon.log"; exit 1; }
    sleep 2
  done
}
materialize() { dagster asset materialize -m tts_assets.definitions --select "$1"; }

say "the quiz: 80 clips with their texts"
python examples/voices/make_sources.py quiz "$work/quiz"

say "sensors watch both folders"
# before the daemon: two processes that both make the instance's database leave a broken one
dagster sensor start changed_corpora -m tts_assets.definitions
dagster-daemon run -m tts_assets.definitions > "$work/daemon.log" 2>&1 &
daemon=$!
trap 'kill $daemon 2> /dev/null || true' EXIT
wait_for token_arrays quiz

say "the first voice, from the quiz alone"
materialize 'key:"evaluation_suite" or key:"sft/her" or key:"serving/her" or key:"report/her"'

say "the interview arrives: it is seen, cut, transcribed, filtered and encoded"
python examples/voices/make_sources.py interview "$work/interview"
wait_for token_arrays interview

say "the second voice goes on from the first, on both; what did it bring?"
materialize 'key:"sft/her_both" or key:"serving/her_both" or key:"report/her_both"'
materialize 'key:"comparison/two_sources"'

say "the summary"
cat "$work/storage/comparison/two_sources/all/current/summary.md"
echo "$work/storage/comparison/two_sources/all/current/comparison.html"
