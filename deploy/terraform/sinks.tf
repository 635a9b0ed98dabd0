# The warehouse. The service makes table and view from the configured columns, and adds columns that are configured later.

resource "google_bigquery_dataset" "warehouse" {
  dataset_id = var.dataset
  location   = local.location

  depends_on = [google_project_service.api]
}

resource "google_bigquery_dataset_iam_member" "writer" {
  dataset_id = google_bigquery_dataset.warehouse.dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = google_service_account.service["bigquery"].member
}

# At its start the service asks which ids came last (bigquery.google.recall); asking is a job.
resource "google_project_iam_member" "asks" {
  project = var.project
  role    = "roles/bigquery.jobUser"
  member  = google_service_account.service["bigquery"].member
}

# The archive. Objects are written once, never changed.

resource "google_storage_bucket" "archive" {
  name                        = local.bucket
  location                    = local.location
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  dynamic "lifecycle_rule" {
    for_each = var.archive_nearline_days[*]
    content {
      condition {
        age = lifecycle_rule.value
      }
      action {
        type          = "SetStorageClass"
        storage_class = "NEARLINE"
      }
    }
  }

  dynamic "lifecycle_rule" {
    for_each = var.archive_delete_days[*]
    content {
      condition {
        age = lifecycle_rule.value
      }
      action {
        type = "Delete"
      }
    }
  }

  depends_on = [google_project_service.api]
}

# Creates objects and reads them, to recognise what is delivered again; it may neither overwrite nor delete.
resource "google_storage_bucket_iam_member" "archive" {
  for_each = toset(["roles/storage.objectCreator", "roles/storage.objectViewer"])

  bucket = google_storage_bucket.archive.name
  role   = each.key
  member = google_service_account.service["icestore"].member
}

resource "google_bigquery_dataset_iam_member" "operator" {
  for_each = toset(var.operators)

  dataset_id = google_bigquery_dataset.warehouse.dataset_id
  role       = "roles/bigquery.dataViewer"
  member     = each.key
}

resource "google_project_iam_member" "operator_asks" {
  for_each = toset(var.operators)

  project = var.project
  role    = "roles/bigquery.jobUser"
  member  = each.key
}

resource "google_storage_bucket_iam_member" "operator" {
  for_each = toset(var.operators)

  bucket = google_storage_bucket.archive.name
  role   = "roles/storage.objectViewer"
  member = each.key
}
