#!/usr/bin/env bash
# Two sources of one person, one voice: see docs/two_sources.md. Run it in the project's environment.
# It can be interrupted and started again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$here/work
export TTS_PROJECT=$here/dagster_project.toml DAGSTER_HOME=$work/dagster PYTHONPATH=$root
mkdir -p "$DAGSTER_HOME"
cp -n "$root/.dagster/dagster.yaml" "$DAGSTER_HOME/" || true
cd "$root"

say() { printf '\n== %s\n' "$*"; }
wait_for() { # waits until the sensors have published an asset of a corpus
  until [ -L "$work/storage/$1/$2/current" ]; do
    kill -0 "$daemon" || { echo "the daemon has ended: $work/daemon.log"; exit 1; }
    sleep 2
  done
}
materialize() { tts-assets run --select "$1"; }

say "make the quiz: 80 clips with their texts"
python examples/voices/make_sources.py quiz "$work/quiz"

say "switch on the sensors, start the daemon"
# before the daemon: if two processes create the database at once, it is damaged
dagster sensor start changed_corpora -m tts_assets.definitions
dagster-daemon run -m tts_assets.definitions > "$work/daemon.log" 2>&1 &
daemon=$!
trap 'kill $daemon 2> /dev/null || true' EXIT
wait_for token_arrays quiz

say "train the first voice on the quiz only"
materialize 'key:"evaluation_suite" or key:"sft/her" or key:"serving/her" or key:"report/her"'

say "make the interview; the sensors have it cut, transcribed, filtered and encoded"
python examples/voices/make_sources.py interview "$work/interview"
wait_for token_arrays interview

say "train the second voice, initialized from the first, on both sources, and compare"
materialize 'key:"sft/her_both" or key:"serving/her_both" or key:"report/her_both"'
materialize 'key:"comparison/two_sources"'

say "the summary"
cat "$work/storage/comparison/two_sources/all/current/summary.md"
echo "$work/storage/comparison/two_sources/all/current/comparison.html"
