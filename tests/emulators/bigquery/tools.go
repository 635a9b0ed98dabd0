//go:build tools

// Package tools names the program to build: go build -mod=mod github.com/goccy/bigquery-emulator/cmd/bigquery-emulator
package tools

import _ "github.com/goccy/bigquery-emulator/cmd/bigquery-emulator"
