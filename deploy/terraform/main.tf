# Everything the four services need and nothing else: topics, subscriptions, dataset, bucket, and one account per service
# with the rights that its part of the path takes.

locals {
  location = coalesce(var.location, var.region)
  bucket   = coalesce(var.bucket, "${var.project}-millstream-archive")
  services = ["ingestion", "enrichment", "bigquery", "icestore"]
  # Subscription (called as the service that reads it) => topic.
  subscriptions = {
    enrichment = "raw"
    bigquery   = "enriched"
    icestore   = "enriched"
  }
}

data "google_project" "this" {}

resource "google_project_service" "api" {
  for_each = toset(concat(
    ["pubsub", "firestore", "bigquery", "bigquerystorage", "storage", "iam", "artifactregistry"],
    var.redis_network == null ? [] : ["redis"],
  ))

  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false
}

resource "google_service_account" "service" {
  for_each = toset(local.services)

  account_id   = "millstream-${each.key}"
  display_name = "Millstream ${each.key}"
}

resource "google_service_account_iam_member" "workload_identity" {
  for_each = var.kubernetes_namespace == null ? toset([]) : toset(local.services)

  service_account_id = google_service_account.service[each.key].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.project}.svc.id.goog[${var.kubernetes_namespace}/${each.key}]"
}

# The images.

resource "google_artifact_registry_repository" "images" {
  repository_id = "millstream"
  location      = var.region
  format        = "DOCKER"

  depends_on = [google_project_service.api]
}

# Device data. The services read it; who writes it is not theirs to say.

resource "google_firestore_database" "default" {
  count = var.firestore ? 1 : 0

  name        = "(default)"
  location_id = var.region
  type        = "FIRESTORE_NATIVE"

  depends_on = [google_project_service.api]
}

resource "google_project_iam_member" "devices" {
  project = var.project
  role    = "roles/datastore.viewer"
  member  = google_service_account.service["enrichment"].member
}

resource "google_redis_instance" "cache" {
  count = var.redis_network == null ? 0 : 1

  name               = "millstream"
  region             = var.region
  tier               = "BASIC"
  memory_size_gb     = 1
  redis_version      = "REDIS_7_2"
  authorized_network = var.redis_network

  depends_on = [google_project_service.api]
}
