package dialect

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// maximum is where a call's own maximum of output stands.
type maximum struct {
	// within are the spellings of the object that holds it; none: the top. The
	// first is the one that is made where there is none.
	within []string
	// name is the one that is put in where there is none; "" if none is known.
	name string
	// also are the other names that the provider heeds as well.
	also []string
}

// ownMaximum returns where the provider of c looks for the maximum.
func ownMaximum(c *Call, r *http.Request, root gjson.Result) maximum {
	t := newTarget(r)
	ends := func(suffix string) bool { return strings.HasSuffix(t.low, suffix) }
	switch {
	case c.Kind != Generate:
	case c.Dialect == bedrock:
		return bedrockMaximum(c, ends("/converse") || ends("/converse-stream"), root)
	case c.wire == &anthropicWire && ends("/complete"):
		return maximum{name: "max_tokens_to_sample"}
	case c.wire == &anthropicWire:
		return maximum{name: "max_tokens"}
	case c.wire == &geminiWire && ends("/interactions"):
		return maximum{within: []string{"generation_config"}, name: "max_output_tokens"}
	case c.wire == &geminiWire && ends("generatecontent"):
		return maximum{within: []string{"generationConfig", "generation_config"}, name: "maxOutputTokens", also: []string{"max_output_tokens"}}
	case c.Dialect == ollama:
		return maximum{within: []string{"options"}, name: "num_predict"}
	case c.Dialect == cohere && !ends("/summarize"):
		return maximum{name: "max_tokens"}
	case ends("/responses"):
		return maximum{name: "max_output_tokens"}
	case ends("/chat/completions") && ownModel(c.Model):
		return maximum{name: "max_completion_tokens", also: []string{"max_tokens"}}
	case ends("/chat/completions"):
		return maximum{name: "max_tokens", also: []string{"max_completion_tokens"}}
	case ends("/completions"), ends("rawpredict"), ends("/v1/chat"):
		return maximum{name: "max_tokens"}
	}
	return maximum{}
}

// ownModel tells whether a model is one of OpenAI's own, of which the newer
// refuse max_tokens. Their open models are served by those who take it.
func ownModel(model string) bool {
	model = strings.TrimPrefix(strings.TrimPrefix(model, "openai/"), "ft:")
	if strings.HasPrefix(model, "gpt-oss") {
		return false
	}
	for _, p := range []string{"gpt-", "o1", "o3", "o4", "chatgpt-"} {
		if strings.HasPrefix(model, p) {
			return true
		}
	}
	return false
}

// bedrockMaximum returns where a model takes its maximum on Bedrock: Converse
// has one place for all, else each has its own, which the model's name tells,
// or the shape of the body where a profile's does not.
func bedrockMaximum(c *Call, converse bool, root gjson.Result) maximum {
	has := func(part string) bool { return strings.Contains(c.Model, part) }
	switch {
	case converse:
		return maximum{within: []string{"inferenceConfig"}, name: "maxTokens"}
	case has("amazon.nova"):
		return maximum{within: []string{"inferenceConfig"}, name: "maxTokens", also: []string{"max_new_tokens"}}
	case has("amazon.titan"), root.Get("inputText").Exists():
		return maximum{within: []string{"textGenerationConfig"}, name: "maxTokenCount"}
	case has("meta.llama"):
		return maximum{name: "max_gen_len"}
	case has("anthropic.claude-v2"), has("anthropic.claude-instant"), has("anthropic.") && !root.Get("messages").Exists():
		if !root.Get("messages").Exists() {
			return maximum{name: "max_tokens_to_sample"}
		}
		return maximum{name: "max_tokens"}
	case has("openai."):
		return maximum{name: "max_completion_tokens", also: []string{"max_tokens"}}
	case has("ai21.j2"):
		return maximum{name: "maxTokens"}
	}
	for _, p := range []string{"anthropic.", "cohere.", "mistral.", "ai21.", "deepseek.", "qwen.", "writer.", "moonshot", "minimax.", "zai.", "google.", "nvidia."} {
		if has(p) {
			return maximum{name: "max_tokens"}
		}
	}
	if root.Get("anthropic_version").Exists() {
		return maximum{name: "max_tokens"}
	}
	return maximum{}
}

// maxFields are the maxima of all families, at the top or in settings.
var maxFields = []string{
	"maxtokens", "maxcompletiontokens", "maxoutputtokens", "maxtokenstosample", "maxtokencount", "maxgenlen", "maxnewtokens", "numpredict",
}

// LimitOutput makes the request declare at most n tokens of output in all: over
// n choices, prompts or what else multiplies it, each has its part of it. All
// maxima that the body has are lowered to that, those that are no positive
// number are replaced (0 by 1, for to some it is no maximum), and where the
// provider's own is missing it is put in. The rest of the body stays byte for
// byte; MaxOutput becomes what is then declared.
//
// It returns false, and changes nothing, if there is no room for an answer: n is
// less than Choices, or no more than the tokens that the request sets aside for
// thinking, which the provider would refuse. The call is then to be refused as
// one that does not fit the limit.
//
// It needs [Options].Strict, comes before [Call.Forward], and has nothing to do
// for calls that generate nothing or of which the body could not be read.
func (c *Call) LimitOutput(n int64) bool {
	if c.Kind != Generate || !c.read || c.Choices < 1 {
		return true
	}
	if n < c.Choices {
		return false
	}
	if c.unreadable(true) != "" {
		return true
	}
	l := limiting{own: c.own, most: min(n/c.Choices, maxCount), declared: -1}
	root := gjson.ParseBytes(c.body)
	l.survey(root)
	value := l.most
	if l.declared >= 0 {
		value = min(value, l.declared)
	}
	if l.budget >= value && (l.declared < 0 || l.budget < l.declared) {
		return false
	}
	l.edit(root, value)
	c.body = applied(c.body, l.edits)
	c.MaxOutput = product(value, c.Choices)
	return true
}

// limiting is the lowering of one body's maxima.
type limiting struct {
	own      maximum
	most     int64 // for each choice
	declared int64 // the greatest maximum that the body has; -1: none
	budget   int64 // set aside for thinking; 0: nothing
	inner    int   // settings round what is read
	edits    []edit
}

// edit puts by in the place of what stands from one position to another.
type edit struct {
	from, to int
	by       string
}

// survey looks for what is declared.
func (l *limiting) survey(o gjson.Result) {
	each(o, func(name string, v gjson.Result) {
		switch plain := plainName(name); {
		case slices.Contains(maxFields, plain):
			if v.Type == gjson.Number && (v.Num >= 1 || v.Num >= 0 && plain != "numpredict") {
				l.declared = max(l.declared, whole(v.Num))
			}
		case plain == "thinking", plain == "reasoning", plain == "reasoningconfig":
			each(v, func(name string, v gjson.Result) {
				if p := plainName(name); v.Type == gjson.Number && (p == "budgettokens" || p == "maxtokens") {
					l.budget = max(l.budget, whole(v.Num))
				}
			})
		case l.inner < maxSettings && slices.Contains(settings, plain):
			l.inner++
			l.survey(v)
			l.inner--
		}
	})
	if l.declared == 0 {
		l.declared = 1
	}
}

// whole returns the whole number that a maximum is taken for.
func whole(f float64) int64 {
	if f > maxCount {
		return maxCount
	}
	return max(int64(f), 0)
}

// edit lowers what is there to value and puts in what is missing.
func (l *limiting) edit(root gjson.Result, value int64) {
	found := false
	each(root, func(name string, v gjson.Result) {
		plain := plainName(name)
		holds := slices.ContainsFunc(l.own.within, func(s string) bool { return plainName(s) == plain })
		switch {
		case holds && v.IsObject():
			if !l.lower(v, value) {
				l.insert(v, member(l.own.name, value))
			}
		case holds:
			l.replace(v, "{"+member(l.own.name, value)+"}")
		case slices.Contains(settings, plain):
			l.lower(v, value)
		default:
			found = l.field(name, plain, v, value) && len(l.own.within) == 0 || found
		}
		found = found || slices.Contains(l.own.within, name)
	})
	switch m := member(l.own.name, value); {
	case found, l.own.name == "":
	case len(l.own.within) > 0:
		l.insert(root, `"`+l.own.within[0]+`":{`+m+"}")
	default:
		l.insert(root, m)
	}
}

// lower lowers the maxima in one of the settings and tells whether the
// provider's own is among them.
func (l *limiting) lower(o gjson.Result, value int64) (own bool) {
	if l.inner++; l.inner > maxSettings {
		l.inner--
		return false
	}
	defer func() { l.inner-- }()
	each(o, func(name string, v gjson.Result) {
		plain := plainName(name)
		if slices.Contains(settings, plain) {
			l.lower(v, value)
			return
		}
		own = l.field(name, plain, v, value) || own
	})
	return own
}

// field lowers v if it is a maximum and tells whether it is the provider's own.
func (l *limiting) field(name, plain string, v gjson.Result, value int64) (own bool) {
	if !slices.Contains(maxFields, plain) {
		return false
	}
	switch {
	case v.Type == gjson.Number && v.Num >= 1 && v.Num <= float64(value):
	case v.Type == gjson.Number && v.Num >= 0 && v.Num < 1 && plain != "numpredict":
		l.replace(v, "1")
	default:
		l.replace(v, strconv.FormatInt(value, 10))
	}
	return name == l.own.name || slices.Contains(l.own.also, name)
}

func (l *limiting) replace(v gjson.Result, by string) {
	l.edits = append(l.edits, edit{v.Index, v.Index + len(v.Raw), by})
}

// insert puts a member in at the beginning of an object.
func (l *limiting) insert(o gjson.Result, m string) {
	if !empty([]byte(o.Raw[1:])) {
		m += ","
	}
	l.edits = append(l.edits, edit{o.Index + 1, o.Index + 1, m})
}

func member(name string, n int64) string {
	return `"` + name + `":` + strconv.FormatInt(n, 10)
}

// applied returns body with the edits made, which do not overlap.
func applied(body []byte, edits []edit) []byte {
	if len(edits) == 0 {
		return body
	}
	slices.SortStableFunc(edits, func(a, b edit) int { return a.from - b.from })
	out, at := make([]byte, 0, len(body)+64*len(edits)), 0
	for _, e := range edits {
		out = append(append(out, body[at:e.from]...), e.by...)
		at = e.to
	}
	return append(out, body[at:]...)
}
