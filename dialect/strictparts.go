package dialect

import (
	"strings"

	"github.com/tidwall/gjson"
)

// What strict admission knows of messages and tools.

// How deep parts lie in parts, and settings in settings, at the most: each
// level is read again for the next.
const (
	maxNesting  = 32
	maxSettings = 4
)

// parts goes through messages and their parts: all types and names must be
// known to be text that lies here.
func (b *binding) parts(v gjson.Result) {
	if b.depth++; b.depth > maxNesting {
		b.because("deep nesting")
	}
	defer func() { b.depth-- }()
	if b.why != "" {
		return
	}
	if v.IsArray() {
		each(v, func(_ string, e gjson.Result) { b.parts(e) })
		return
	}
	if v.Type == gjson.String && isDataURL([]byte(v.Str[:min(len(v.Str), 128)])) {
		b.because("a data URL") // some take it for what it holds
	}
	if !v.IsObject() {
		return
	}
	typ, sealed := "", false
	each(v, func(name string, v gjson.Result) {
		plain := plainName(name)
		switch {
		case plain == "type":
			typ = v.Str
			if typ != "" && !textTypes[typ] {
				b.because("a part of the type " + quoted(typ))
			}
		case plain == "encryptedcontent":
			sealed = sealed || v.Str != ""
		case plain == "result" && v.IsObject(): // what a function returned
		case textParts[plain]:
			b.parts(v)
		case !inert[plain] && v.Type != gjson.Null:
			b.because("a message or part with " + quoted(name))
		}
	})
	if typ == "reasoning" && !sealed && v.Get("id").Exists() {
		b.because("stored reasoning") // its text is fetched by the id
	}
}

// quoted shortens what a caller wrote for a message to the caller.
func quoted(s string) string {
	if len(s) > 40 {
		s = strings.ToValidUTF8(s[:40], "") + "…"
	}
	return `"` + s + `"`
}

// textTypes are the types of messages, items and parts that are text here.
var textTypes = setOf(
	"text", "input_text", "output_text", "refusal", "message", "reasoning", "reasoning_text", "summary_text",
	"thinking", "redacted_thinking", "thought", "compaction",
	"function", "function_call", "function_call_output", "function_result", "custom", "custom_tool_call", "custom_tool_call_output",
	"tool_use", "tool_result", "tool_call",
	"user_input", "model_output",
	"document", // Cohere's; whoever's that is a file has a "source"
)

// textParts are members of messages and parts that hold such again.
var textParts = setOf(
	"content", "parts", "text", "output", "result", "summary", "document", "message", "thinking", "guardcontent",
	"toolresult", "reasoningcontent", "reasoningtext", "functionresponse", "executablecode", "codeexecutionresult",
)

// inert are members of messages and parts that bring no more than their bytes,
// whatever they hold.
var inert = setOf(
	"type", "role", "name", "id", "callid", "toolcallid", "tooluseid", "toolname", "status", "index", "title", "phase",
	// Calls and answers of functions.
	"toolcalls", "toolplan", "functioncall", "function", "custom", "arguments", "args", "input", "parameters", "response", "json",
	"tooluse", "call", "outputs", "toolresults", "iserror", "caller", "namespace", "willcontinue", "scheduling", "code", "language", "outcome",
	// What came with answers and goes back.
	"refusal", "reasoning", "reasoningdetails", "encryptedcontent", "redactedcontent", "signature", "thoughtsignature", "thought",
	"annotations", "citations", "logprobs", "data", "tokens", "model", "channel", "finishreason",
	// Marks.
	"cachecontrol", "cachepoint", "promptcachebreakpoint", "qualifiers", "prefix", "weight", "tasktype", "outputdimensionality", "metadata",
)

// declared takes up declarations of tools: only functions run at the caller's.
func (b *binding) declared(v gjson.Result) {
	if v.IsObject() {
		b.tool(v) // some take one without its array
		return
	}
	each(v, func(_ string, t gjson.Result) {
		if t.IsObject() {
			b.tool(t)
		} else if active(t) {
			b.because("a tool by its name")
		}
	})
}

// tool takes up one declaration.
func (b *binding) tool(t gjson.Result) {
	b.tools = true
	each(t, func(name string, v gjson.Result) {
		switch plain := plainName(name); {
		case plain == "type":
			if !callersTool(v.Str) {
				b.because("a tool of the type " + quoted(v.Str))
			}
		case !toolMembers[plain] && v.Type != gjson.Null:
			b.because("a tool with " + quoted(name))
		}
	})
}

// callersTool tells whether tools of a type run at the caller's.
func callersTool(typ string) bool {
	switch typ {
	case "", "function", "custom":
		return true
	}
	return strings.HasPrefix(typ, "bash_20") || strings.HasPrefix(typ, "text_editor_20") || strings.HasPrefix(typ, "memory_20")
}

// toolMembers are what declarations of functions have.
var toolMembers = setOf(
	"type", "name", "description", "parameters", "function", "custom", "format", "strict", "inputschema", "outputschema",
	"parameterdefinitions", "functiondeclarations", "toolspec", "cachepoint", "cachecontrol",
	"deferloading", "allowedcallers", "inputexamples", "eagerinputstreaming", "maxcharacters",
)

// setOf returns a set of names.
func setOf(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, s := range names {
		m[s] = true
	}
	return m
}
