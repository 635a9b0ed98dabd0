variable "project" {
  description = "Project id."
  type        = string
}

variable "region" {
  description = "Region of Redis, of the image repository and, unless another location is given, of dataset and bucket."
  type        = string
  default     = "europe-west1"
}

variable "location" {
  description = "Location of the dataset and the bucket, such as EU; the region without it."
  type        = string
  default     = null
}

variable "dataset" {
  description = "BigQuery dataset. The service bigquery makes its table there."
  type        = string
  default     = "millstream"
}

variable "bucket" {
  description = "Bucket of the archive; names are global. PROJECT-millstream-archive without it."
  type        = string
  default     = null
}

variable "archive_nearline_days" {
  description = "Age at which archive objects move to Nearline; null leaves them where they are. They are written once and seldom read."
  type        = number
  default     = 30
}

variable "archive_delete_days" {
  description = "Age at which archive objects are deleted; null keeps them for ever."
  type        = number
  default     = null
}

variable "ack_deadline_seconds" {
  description = "How long a message is out before Pub/Sub delivers it again. The services extend it while they work; it is what a crash costs in time."
  type        = number
  default     = 60
}

variable "exactly_once" {
  description = "Exactly-once delivery of the subscriptions: fewer redeliveries, for less throughput and more latency. The sinks know a message that comes again by its id either way."
  type        = bool
  default     = false
}

variable "message_ordering" {
  description = "Subscriptions deliver in order of the ordering key; needed with bus.pubsub.ordering_keys."
  type        = bool
  default     = false
}

variable "retention" {
  description = "How long Pub/Sub keeps what is not acknowledged: the longest outage of a sink that loses nothing. At most 31 days."
  type        = string
  default     = "2678400s"
}

variable "max_delivery_attempts" {
  description = "Deliveries after which Pub/Sub itself moves a message to the dead letters, 5 to 100. The services give up a message at fault after far fewer tries of their own; this catches what they cannot. What is given back in an outage counts here too, so a low number would drain good messages."
  type        = number
  default     = 100
}

variable "firestore" {
  description = "Make the project's Firestore database (default). A project has one; false where it is there already."
  type        = bool
  default     = false
}

variable "redis_network" {
  description = "Network (its self link) in which to make a Redis for the services to share look-ups; null makes none, and the services ask Firestore for what they do not remember."
  type        = string
  default     = null
}

variable "kubernetes_namespace" {
  description = "Namespace whose service accounts ingestion, enrichment, bigquery and icestore act as the Google ones (workload identity); null where the services run elsewhere."
  type        = string
  default     = null
}

variable "operators" {
  description = "Who may read warehouse, archive and dead letters for `millstream books`, such as group:ops@example.com."
  type        = list(string)
  default     = []
}

variable "letter_workers" {
  description = "Who may bring dead letters back to their topics or drop them with `millstream dead-letters`, such as group:ops@example.com; usually those of `operators`."
  type        = list(string)
  default     = []
}

variable "mqtt_user" {
  description = "User name at the MQTT broker, for the output cloud_yaml. The password is no business of Terraform's: it goes into a secret of the platform."
  type        = string
  default     = "millstream"
}

variable "mqtt_url" {
  description = "Outside MQTT broker, for the output cloud_yaml."
  type        = string
  default     = "mqtts://broker.example:8883"
}
