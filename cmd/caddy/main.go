// Command caddy is Caddy with this module in it: for development, tests, and
// people who build without xcaddy.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/llm-quota/caddy-llm-quota"
)

func main() { caddycmd.Main() }
