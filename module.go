// Package llmquota is a quota gate for LLM APIs behind Caddy.
package llmquota
