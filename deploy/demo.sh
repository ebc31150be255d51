#!/bin/sh
# Plays two streams through the daemon: a real one, and one whose rule changes every 5,000 rows.
set -eu
adaptd=$1
folder=run
mkdir -p "$folder"

echo "== A real stream: 2,310 image segments, one JSON object a line"
"$adaptd" demo segments > "$folder/segments.jsonl"
head -n 1 "$folder/segments.jsonl" | cut -c1-150
echo "   ... through 'adaptd run', no configuration (the first start compiles the kernels, about a minute)"
"$adaptd" run < "$folder/segments.jsonl" > "$folder/segments.predictions.jsonl"
echo "   ... and out come the predictions, each made before its label was learned:"
head -n 1 "$folder/segments.predictions.jsonl"
tail -n 1 "$folder/segments.predictions.jsonl" | cut -c1-220
echo
"$adaptd" replay "$folder/segments.jsonl"

echo
echo "== A generated stream with drift: three rules take turns every 5,000 rows"
"$adaptd" demo drift --rows 30000 > "$folder/drift.jsonl"
"$adaptd" run --set log.level=warning < "$folder/drift.jsonl" > "$folder/drift.predictions.jsonl"
tail -n 1 "$folder/drift.predictions.jsonl"
echo
"$adaptd" replay "$folder/drift.jsonl"
echo
echo "Predictions are in $folder/. Now your own: cat events.jsonl | $adaptd run"
