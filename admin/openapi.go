package admin

import _ "embed"

// openAPI describes the API, as OpenAPI 3.1.
//
//go:embed openapi.json
var openAPI []byte

func showOpenAPI(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Write(openAPI) //nolint:errcheck // a client that has gone cannot be told
	return nil
}
