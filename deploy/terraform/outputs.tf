output "cloud_yaml" {
  description = "Configuration of the four services: terraform output -raw cloud_yaml > cloud.yaml"
  value = templatefile("${path.module}/cloud.yaml.tftpl", {
    project   = var.project
    mqtt_url  = var.mqtt_url
    mqtt_user = var.mqtt_user
    ordering  = var.message_ordering
    redis     = one(google_redis_instance.cache[*])
    dataset   = google_bigquery_dataset.warehouse.dataset_id
    location  = local.location
    bucket    = google_storage_bucket.archive.name
  })
}

output "image_prefix" {
  description = "PREFIX for deploy/build-images."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "service_accounts" {
  description = "Service => e-mail of the account that it runs as."
  value       = { for service, account in google_service_account.service : service => account.email }
}
