package dialect

import "github.com/llm-quota/caddy-llm-quota/quota"

// believable clamps what was reported to what a sum can hold, and tells
// whether it is to be believed at all.
func believable(t quota.Tokens) (quota.Tokens, bool) {
	t.Input, t.Output = max(t.Input, 0), max(t.Output, 0)
	if t.Input > quota.MaxUsage || t.Output > quota.MaxUsage {
		return quota.Tokens{}, false
	}
	// Azure reports more cached tokens than input, Vercel more reasoning than
	// output: the sums are right, the parts are not.
	t.Cached = min(max(t.Cached, 0), t.Input)
	t.CacheWrite = min(max(t.CacheWrite, 0), t.Input-t.Cached)
	t.Reasoning = min(max(t.Reasoning, 0), t.Output)
	return t, true
}

// usageRules reads the usage objects of the OpenAI-shaped families and
// Anthropic's at a path.
func usageRules(path string) []rule {
	p := func(name string, a ...action) rule { return at(path+"."+name, a...) }
	return []rule{
		at(path, fresh),
		p("prompt_tokens", num(nInput)),
		p("input_tokens", num(nInput)),
		p("completion_tokens", num(nOutput)),
		p("output_tokens", num(nOutput)),
		p("total_tokens", num(nTotal)),
		p("prompt_tokens_details.cached_tokens", num(nCached)),
		p("input_tokens_details.cached_tokens", num(nCached)),
		p("prompt_cache_hit_tokens", num(nCached)),
		p("prompt_tokens_details.cache_write_tokens", num(nCacheWrite)),
		p("input_tokens_details.cache_write_tokens", num(nCacheWrite)),
		p("prompt_tokens_details.audio_tokens", num(nAudio)),
		p("completion_tokens_details.reasoning_tokens", num(nReasoning)),
		p("output_tokens_details.reasoning_tokens", num(nReasoning)),
		p("output_tokens_details.thinking_tokens", num(nReasoning)),
		p("cache_read_input_tokens", num(nReadBeside)),
		p("cache_creation_input_tokens", num(nMadeBeside)),
		p("iterations.input_tokens", sum(nPassInput)),
		p("iterations.output_tokens", sum(nPassOutput)),
		p("iterations.cache_read_input_tokens", sum(nPassRead)),
		p("iterations.cache_creation_input_tokens", sum(nPassMade)),
	}
}

// openaiTokens reads usage as the OpenAI-shaped providers mean it. Where the
// total is more than input and output, the rest was used too: Mistral leaves
// out what it heard, xAI what was thought, Gemini's compatible endpoint too
// but without saying so.
func openaiTokens(u *numbers, k Kind) (quota.Tokens, bool) {
	if u.absurd&(1<<nInput|1<<nOutput|1<<nTotal) != 0 {
		return quota.Tokens{}, false
	}
	t := quota.Tokens{
		Input: u.get(nInput), Output: u.get(nOutput),
		Cached: u.get(nCached), CacheWrite: u.get(nCacheWrite), Reasoning: u.get(nReasoning),
	}
	if !u.any(nTotal) && u.any(nReadBeside, nMadeBeside) {
		return anthropicTokens(u, k) // its usage under another's roof
	}
	gap := u.get(nTotal) - t.Input - t.Output
	switch {
	case gap <= 0:
	case gap == u.get(nAudio), k == Embed, k == Media && t.Output == 0 && !u.any(nOutput):
		t.Input += gap
	default:
		t.Output += gap
	}
	return believable(t)
}

// anthropicTokens reads usage as Anthropic means it: the input leaves out what
// was read from and written to the cache, and where there are iterations the
// top level leaves out all passes but one.
func anthropicTokens(u *numbers, _ Kind) (quota.Tokens, bool) {
	if u.absurd&^(1<<nReasoning) != 0 {
		return quota.Tokens{}, false
	}
	in, out, read, made := u.get(nInput), u.get(nOutput), u.get(nReadBeside), u.get(nMadeBeside)
	if u.any(nPassInput, nPassOutput) {
		in, out, read, made = u.get(nPassInput), u.get(nPassOutput), u.get(nPassRead), u.get(nPassMade)
	}
	return believable(quota.Tokens{
		Input: in + read + made, Cached: read, CacheWrite: made,
		Output: out, Reasoning: u.get(nReasoning),
	})
}
