package dialect

import "github.com/tidwall/gjson"

// Ask returns what the call asks of limits on tokens: its input, how much to
// hold for its output, and the least of that without which it has no sense.
// Under strict admission the input is an upper bound, where there is one, and
// the output is to be limited to what is held; see [Call.LimitOutput].
func (c *Call) Ask(opt Options) (input, output, least int64) {
	if c.Kind == Free {
		return 0, 0, 0
	}
	input = c.Input
	if opt.Strict && c.Bound > 0 {
		input = c.Bound
	}
	switch {
	case c.Kind == Embed:
		return input, 0, 0
	case c.MaxOutput >= 0:
		output = min(c.MaxOutput, maxCount)
	case opt.Strict:
		output = min(product(opt.DefaultCap, max(c.Choices, 1)), maxCount)
	default:
		output = opt.DefaultReserve
	}
	if opt.Strict && c.Kind == Generate {
		least = c.leastOutput()
		output = max(output, least)
	}
	return input, output, least
}

// leastOutput is the least for which LimitOutput finds room.
func (c *Call) leastOutput() int64 {
	choices := max(c.Choices, 1)
	if c.Choices < 1 || !c.read || c.unreadable(true) != "" {
		return choices
	}
	l := limiting{declared: -1}
	l.survey(gjson.ParseBytes(c.body))
	if l.budget > 0 && (l.declared < 0 || l.budget < l.declared) {
		return product(l.budget+1, choices)
	}
	return choices
}
