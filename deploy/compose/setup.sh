#!/bin/sh
# Makes topics, subscriptions, bucket and two devices on the emulators. Runs again without harm: what is there stays.
set -eu

project=millstream-local
pubsub="http://pubsub:8085/v1/projects/$project"

# put URL JSON: 409 means that it is there already.
put() {
  status="$(curl -sS -o /dev/null -w '%{http_code}' -X "$3" -H 'Content-Type: application/json' -d "$2" "$1")"
  case "$status" in
    200 | 409) echo "$1" ;;
    *) echo "$1 answers $status" >&2; exit 1 ;;
  esac
}

for topic in raw enriched dead-letters; do put "$pubsub/topics/$topic" '{}' PUT; done

subscription() {
  put "$pubsub/subscriptions/$1" "{
    \"topic\": \"projects/$project/topics/$2\", \"ackDeadlineSeconds\": 60,
    \"retryPolicy\": {\"minimumBackoff\": \"1s\", \"maximumBackoff\": \"60s\"},
    \"deadLetterPolicy\": {\"deadLetterTopic\": \"projects/$project/topics/dead-letters\", \"maxDeliveryAttempts\": 100}
  }" PUT
}
subscription enrichment raw
subscription bigquery enriched
subscription icestore enriched
put "$pubsub/subscriptions/books" "{\"topic\": \"projects/$project/topics/dead-letters\"}" PUT

put "http://storage/storage/v1/b?project=$project" '{"name": "millstream-archive"}' POST

devices="http://firestore:8086/v1/projects/$project/databases/(default)/documents/devices"
for number in 1 2; do
  put "$devices/tracker-$number" '{"fields": {
    "client_id": {"stringValue": "acme"}, "location_id": {"stringValue": "harbour-south"},
    "category": {"stringValue": "tracker"}
  }}' PATCH
done
