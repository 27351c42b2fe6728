package dialect

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"
)

// Under strict admission a call's input has an upper bound, or the call says
// why it has none, and is then treated like an unmetered one. What is not known to be text that lies in the body has none:
// names and types of parts are let through by lists, so that what providers
// invent later is unbounded and not free.

// Allowances beside the body's own bytes, in tokens. A token is never less than
// a byte of text, so the rest of an input is what the provider adds unseen.
const (
	// What chat templates and a model's own system prompt take: medians of
	// recorded calls lie between 0 and 187, the most is Grok 4's 690.
	hiddenTokens = 1024
	// The same where functions are declared: up to 548, and 950 more for
	// Anthropic's own declarations of a shell and an editor.
	hiddenWithTools = 2048
	// Cohere adds 500 to 1,500 tokens to a chat.
	cohereTokensHidden    = 2048
	cohereHiddenWithTools = 4096
	// The start, the end and the instruction that embedding models put round
	// each text.
	tokensPerText = 32
)

// bind fills in what strict admission asks for: Bound, or Unbounded; Choices;
// and where the call's own maximum of output stands.
func (c *Call) bind(r *http.Request, known bool) {
	if c.Kind == Free {
		return
	}
	c.Choices = 1
	c.Unbounded = c.unreadable(known)
	if c.Unbounded != "" {
		return
	}
	b := binding{call: c, choices: 1, prompts: 1}
	if !utf8.Valid(c.body) { // what replaces a bad byte may be several tokens
		b.because("a body that is not UTF-8")
	}
	root := gjson.ParseBytes(c.body)
	b.members(root)
	c.own = ownMaximum(c, r, root)
	switch {
	case c.Kind == Generate && !b.shape:
		b.because("a body of unknown shape")
	case c.Kind == Generate && c.own.name == "":
		b.because("an output of which the maximum cannot be set")
	}
	b.model(c.Model)
	c.Choices = product(b.choices, b.prompts)
	if c.Unbounded = b.why; c.Unbounded == "" {
		c.Bound = b.bound()
	}
}

// searching are parts of the names of models that read more than they are sent.
var searching = []string{
	"search-preview", "search-api", "deep-research", "sonar", "compound", ":online", "@preset/", ":prompt/", "prompt-router",
}

func (b *binding) model(name string) {
	low := strings.ToLower(name)
	if slices.ContainsFunc(searching, func(part string) bool { return strings.Contains(low, part) }) {
		b.because("a model that searches or runs tools")
	}
}

// unreadable tells why a call has no bound whatever its body says; "" if that
// depends on the body.
func (c *Call) unreadable(known bool) string {
	switch {
	case c.realtime, c.tunnel:
		return "a connection on which more is sent"
	case c.Unmetered:
		return "a call that is not metered"
	case !known, c.Kind == Other:
		return "a call of an unknown kind"
	case c.Kind == Media:
		return "images or sound"
	case !c.read || !json.Valid(c.body) || !gjson.ParseBytes(c.body).IsObject():
		return "a body that is no JSON object"
	}
	return ""
}

// binding is the reading of one body for its bound.
type binding struct {
	call             *Call
	why              string
	shape            bool // something to answer was found
	tools            bool
	choices, prompts int64
	texts            int64 // texts that are embedded each, documents
	query            int64 // bytes of what is compared with each of them
	depth, inner     int   // of parts, of settings
}

func (b *binding) because(why string) {
	if b.why == "" {
		b.why = why
	}
}

// bound returns the upper bound of the input's tokens.
func (b *binding) bound() int64 {
	n := int64(len(b.call.body)) + b.texts*(tokensPerText+b.query)
	cohere := b.call.Dialect == cohere
	switch {
	case b.call.Kind == Embed:
		return n + tokensPerText
	case cohere && b.tools:
		return n + cohereHiddenWithTools
	case cohere:
		return n + cohereTokensHidden
	case b.tools:
		return n + hiddenWithTools
	}
	return n + hiddenTokens
}

// plainName brings the spellings that servers take for one another to one: some
// do not heed case, some take camel case for snake case.
func plainName(s string) string {
	plain := true
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80 {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	return foldName.Replace(strings.ToLower(s))
}

// foldName: the letters beyond ASCII are those that Unicode folds into it.
var foldName = strings.NewReplacer("_", "", "ſ", "s", "\u212a", "k")

// each calls fn for each member of an object, or with "" for each element of
// an array.
func each(v gjson.Result, fn func(name string, v gjson.Result)) {
	v.ForEach(func(k, v gjson.Result) bool {
		fn(k.Str, v)
		return true
	})
}

// members goes through the members of a body, or of an object that carries
// settings of the same sort.
func (b *binding) members(o gjson.Result) {
	each(o, func(name string, v gjson.Result) {
		plain := plainName(name)
		switch {
		case slices.Contains(settings, plain):
			if b.inner++; b.inner > maxSettings {
				b.because("deep nesting")
			} else {
				b.members(v)
			}
			b.inner--
		case serverSide[plain]:
			if active(v) {
				b.because(quoted(name))
			}
		case slices.Contains(choiceFields, plain):
			b.choices = max(b.choices, choices(v))
		default:
			b.member(name, plain, v)
		}
	})
}

// member takes up one member that is neither a setting nor a reference.
func (b *binding) member(name, plain string, v gjson.Result) {
	switch plain {
	case "tools", "functions":
		b.declared(v)
	case "responsemodalities", "modalities":
		each(v, func(_ string, m gjson.Result) {
			if !strings.EqualFold(m.Str, "text") {
				b.because(quoted(name))
			}
		})
	case "reasoning":
		each(v, func(name string, v gjson.Result) {
			if plainName(name) == "mode" && active(v) { // several passes, with prompts of their own
				b.because(`"reasoning.mode"`)
			}
		})
	case "models": // OpenRouter's, for when the first does not answer
		each(v, func(_ string, m gjson.Result) { b.model(m.Str) })
	case "query":
		b.query = int64(len(v.Raw))
	case "documents":
		b.count(v)
		if b.call.Kind == Embed { // elsewhere their fields have any name, and all are text
			b.parts(v)
		}
	case "prompt":
		if v.IsObject() {
			b.because("a stored prompt")
		}
		b.shape = true
		b.prompts = max(b.prompts, batched(v))
		b.parts(v)
	case "messages", "input", "contents", "message", "inputtext":
		b.shape = true
		fallthrough
	case "content", "system", "systeminstruction", "instructions", "chathistory", "texts", "inputs", "requests", "instances":
		if b.call.Kind == Embed {
			b.count(v)
		}
		b.parts(v)
	}
}

// settings are objects whose members count as if they stood at the top.
var settings = []string{
	"generationconfig", "inferenceconfig", "textgenerationconfig", "options", "parameters",
	"additionalmodelrequestfields", "toolconfig", "extrabody", "google",
}

// choiceFields say how many answers are generated.
var choiceFields = []string{
	"n", "bestof", "candidatecount", "numgenerations", "numresults", "numreturnsequences",
}

// serverSide are members that make the provider read what is not in the body,
// run tools, read the body more than once, or charge beside the maximum.
var serverSide = setOf(
	// What is stored there.
	"previousresponseid", "conversation", "conversationid", "previousinteractionid", "cachedcontent", "promptvariables",
	"threadid", "assistantid", "agentid", "agent", "preset", "fileids", "files", "attachments", "semanticretriever",
	// What runs there.
	"background", "container", "contextmanagement", "mcpservers", "plugins", "connectors", "datasources",
	"websearchoptions", "searchparameters", "searchoptions", "searchsettings", "enablesearch", "enablewebsearch", "websearch",
	"vectorstoreids", "compoundcustom", "veniceparameters",
	// What is no text.
	"images", "image", "inputimage", "audio", "video", "inputvideo", "mediasource", "singleembeddingparams", "segmentedembeddingparams",
	// Templates repeat the conversation as they like, examples go with each
	// text, and what a prediction got wrong is charged as output.
	"template", "chattemplate", "examples", "prediction",
)

// active tells whether a member does anything.
func active(v gjson.Result) bool {
	switch v.Type {
	case gjson.Null, gjson.False:
		return false
	case gjson.String:
		return v.Str != ""
	case gjson.JSON:
		return !v.IsArray() || v.Get("0").Exists()
	}
	return true
}

// choices reads how many answers are asked for; strings too are numbers to
// some servers.
func choices(v gjson.Result) int64 {
	f := v.Float()
	if !(f < maxCount) {
		return maxCount
	}
	return max(int64(f+0.5), 1)
}

// batched returns how many prompts an array brings; one of token numbers is one.
func batched(v gjson.Result) (n int64) {
	if !v.IsArray() {
		return 1
	}
	each(v, func(_ string, e gjson.Result) {
		if e.Type != gjson.Number {
			n++
		}
	})
	return max(n, 1)
}

// count counts texts that the provider reads one by one.
func (b *binding) count(v gjson.Result) {
	if v.IsArray() {
		b.texts += batched(v)
	}
}
