package dialect

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

const (
	maxFormParts = 1000
	maxFormField = 1024 // bytes of a field that is read as a name
)

// readForm takes up the fields of a multipart form: the model is one of them,
// and each file counts as one part of sound or image. A form that is broken
// goes on as it is, and names no model.
func (c *Call) readForm(boundary string) *quota.Refusal {
	fields := map[string]string{}
	var text, files int64
	mr := multipart.NewReader(bytes.NewReader(c.body), boundary)
	for range maxFormParts {
		p, err := mr.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			fields = nil
			break
		}
		name := p.FormName()
		if p.FileName() != "" {
			files++
			continue
		}
		head, _ := io.ReadAll(io.LimitReader(p, maxFormField+1))
		rest, _ := io.Copy(io.Discard, p)
		for i := range decisive {
			if decisive[i].name == name {
				if _, twice := fields[name]; twice {
					return &quota.Refusal{Reason: quota.InvalidBody, Detail: fmt.Sprintf("The field %q occurs more than once.", name)}
				}
				if len(head) <= maxFormField {
					fields[name] = string(head)
				}
			}
		}
		if name == "prompt" || name == "input" {
			text += int64(len(head)) + rest
		}
	}
	if c.Model == "" {
		c.Model = fields["model"]
	}
	c.Stream = fields["stream"] == "true"
	if c.Kind != Free {
		c.Input = max(ceilDiv(text, bytesPerToken)+blobTokens*files, 1)
	}
	return nil
}
