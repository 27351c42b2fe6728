package dialect

import (
	"bytes"
	"strings"
)

// What OpenTelemetry's conventions for generative AI call a call
// (https://github.com/open-telemetry/semantic-conventions-genai).

// completions are the paths, by their ends, at which a text is gone on with.
var completions = [...]string{"/v1/complete", "/api/generate", "/v1/generate"}

// Operation returns the conventions' name of what a call to the given path
// does; "" if it is none that they have a name for.
func (c *Call) Operation(path string) string {
	path = lowerASCII(strings.TrimRight(path, "/"))
	switch c.Kind {
	case Generate:
		if strings.HasSuffix(path, "/completions") && !strings.HasSuffix(path, "/chat/completions") {
			return "text_completion"
		}
		for _, end := range completions {
			if strings.HasSuffix(path, end) {
				return "text_completion"
			}
		}
		if c.wire == &geminiWire {
			return "generate_content"
		}
		return "chat"
	case Media:
		return "generate_content"
	case Embed:
		if !strings.Contains(path, "rank") && !strings.Contains(c.Model, "rerank") && !strings.HasSuffix(path, "/classify") {
			return "embeddings"
		}
	}
	return ""
}

// Model returns the model that answered, as the answer names it; "" if it names
// none, or one with a longer name than models have. It is called after
// [Writer.Outcome].
func (w *Writer) Model() string {
	b := w.meter.model.bytes()
	if bytes.IndexByte(b, '\\') >= 0 {
		return ""
	}
	return string(b)
}
