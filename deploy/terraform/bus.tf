# The bus: ingestion -> raw -> enrichment -> enriched -> bigquery and icestore.

resource "google_pubsub_topic" "topic" {
  for_each = toset(["raw", "enriched", "dead-letters"])

  name = each.key

  depends_on = [google_project_service.api]
}

resource "google_pubsub_subscription" "service" {
  for_each = local.subscriptions

  name                         = each.key
  topic                        = google_pubsub_topic.topic[each.value].id
  ack_deadline_seconds         = var.ack_deadline_seconds
  message_retention_duration   = var.retention
  enable_exactly_once_delivery = var.exactly_once
  enable_message_ordering      = var.message_ordering

  # Without it a subscription that nobody reads for 31 days is deleted with all it holds.
  expiration_policy {
    ttl = ""
  }

  retry_policy {
    minimum_backoff = "1s"
    maximum_backoff = "60s"
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.topic["dead-letters"].id
    max_delivery_attempts = var.max_delivery_attempts
  }
}

# Keeps the dead letters: a topic alone keeps nothing. `millstream books` and `dead-letters` look at them here.
resource "google_pubsub_subscription" "books" {
  name                       = "books"
  topic                      = google_pubsub_topic.topic["dead-letters"].id
  ack_deadline_seconds       = 60
  message_retention_duration = var.retention

  expiration_policy {
    ttl = ""
  }
}

# Who publishes where. Every service writes dead letters of its own.
locals {
  publishers = merge(
    { for service in local.services : "${service}-dead-letters" => { service = service, topic = "dead-letters" } },
    {
      ingestion-raw       = { service = "ingestion", topic = "raw" }
      enrichment-enriched = { service = "enrichment", topic = "enriched" }
    },
  )
}

resource "google_pubsub_topic_iam_member" "publisher" {
  for_each = local.publishers

  topic  = google_pubsub_topic.topic[each.value.topic].id
  role   = "roles/pubsub.publisher"
  member = google_service_account.service[each.value.service].member
}

# Who publishes also looks whether its topic is there, or /readyz could not tell that it was deleted. The right to publish
# has no look in it.
resource "google_pubsub_topic_iam_member" "watcher" {
  for_each = local.publishers

  topic  = google_pubsub_topic.topic[each.value.topic].id
  role   = "roles/pubsub.viewer"
  member = google_service_account.service[each.value.service].member
}

resource "google_pubsub_subscription_iam_member" "subscriber" {
  for_each = local.subscriptions

  subscription = google_pubsub_subscription.service[each.key].id
  role         = "roles/pubsub.subscriber"
  member       = google_service_account.service[each.key].member
}

# Pub/Sub itself moves what was delivered too often; without these two rights it would deliver it for ever.
locals {
  pubsub_agent = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
}

resource "google_pubsub_topic_iam_member" "forwarder" {
  topic  = google_pubsub_topic.topic["dead-letters"].id
  role   = "roles/pubsub.publisher"
  member = local.pubsub_agent
}

resource "google_pubsub_subscription_iam_member" "forwarder" {
  for_each = local.subscriptions

  subscription = google_pubsub_subscription.service[each.key].id
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}

# Who brings a dead letter back publishes it to the topic where it was given up. That a person dropped one, or that a rule
# skips it now, is a record beside the letters.
resource "google_pubsub_topic_iam_member" "letter_worker" {
  for_each = { for pair in setproduct(var.letter_workers, ["raw", "enriched", "dead-letters"]) : join(" ", pair) => pair }

  topic  = google_pubsub_topic.topic[each.value[1]].id
  role   = "roles/pubsub.publisher"
  member = each.value[0]
}

resource "google_pubsub_subscription_iam_member" "operator" {
  for_each = toset(concat(var.operators, var.letter_workers))

  subscription = google_pubsub_subscription.books.id
  role         = "roles/pubsub.subscriber"
  member       = each.key
}
