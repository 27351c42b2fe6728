package quota

import "time"

// MaxUsage is the greatest count that an answer is believed to report; above
// it the usage is taken as absurd and estimated instead.
const MaxUsage = 1_000_000_000

// Tokens is what one call used, or a sum of such. Cached and cache-write
// tokens lie within Input, reasoning within Output.
type Tokens struct {
	Input      int64 `json:"input_tokens"`
	Cached     int64 `json:"cached_input_tokens"`
	CacheWrite int64 `json:"cache_write_tokens"`
	Output     int64 `json:"output_tokens"`
	Reasoning  int64 `json:"reasoning_tokens"`
}

// Charge is the number of tokens that these count against limits: input and
// output. It is the one place where usage becomes a charge.
func (t Tokens) Charge() int64 { return t.Input + t.Output }

// Outcome is how a call ended, as its settlement needs it.
type Outcome struct {
	Tokens Tokens
	// Estimated says that Tokens was not reported by the provider.
	Estimated bool
	// Failed says that the call did not end in a whole, good answer.
	Failed bool
	// Later, when not empty, says that the provider goes on with the call in
	// the background, and by which name it tells the usage later. Until then
	// the call is charged what was reserved for it.
	Later string
}

// MaxLater is how many bytes a name in Outcome.Later may have.
const MaxLater = 256

// Totals are sums over calls: what usage reports show.
type Totals struct {
	Requests   int64 `json:"requests"` // admitted, failed ones among them
	Refused    int64 `json:"refused"`  // beside Requests
	Failed     int64 `json:"failed"`
	Input      int64 `json:"input_tokens"`
	Cached     int64 `json:"cached_input_tokens"`
	CacheWrite int64 `json:"cache_write_tokens"`
	Output     int64 `json:"output_tokens"`
	Reasoning  int64 `json:"reasoning_tokens"`
	Total      int64 `json:"total_tokens"`     // what was charged
	Estimated  int64 `json:"estimated_tokens"` // within Total
}

// Add adds o to t.
func (t *Totals) Add(o *Totals) {
	t.Requests += o.Requests
	t.Refused += o.Refused
	t.Failed += o.Failed
	t.Input += o.Input
	t.Cached += o.Cached
	t.CacheWrite += o.CacheWrite
	t.Output += o.Output
	t.Reasoning += o.Reasoning
	t.Total += o.Total
	t.Estimated += o.Estimated
}

// Sub takes o from t.
func (t *Totals) Sub(o *Totals) {
	t.Requests -= o.Requests
	t.Refused -= o.Refused
	t.Failed -= o.Failed
	t.Input -= o.Input
	t.Cached -= o.Cached
	t.CacheWrite -= o.CacheWrite
	t.Output -= o.Output
	t.Reasoning -= o.Reasoning
	t.Total -= o.Total
	t.Estimated -= o.Estimated
}

// Settled returns the totals of one call that ended as o says, apart from the
// request itself, which is counted when it is admitted.
func (o *Outcome) Settled() Totals {
	t := Totals{
		Input: o.Tokens.Input, Cached: o.Tokens.Cached, CacheWrite: o.Tokens.CacheWrite,
		Output: o.Tokens.Output, Reasoning: o.Tokens.Reasoning, Total: o.Tokens.Charge(),
	}
	if o.Estimated {
		t.Estimated = t.Total
	}
	if o.Failed {
		t.Failed = 1
	}
	return t
}

// Step is the width of the time slots in which usage is kept.
type Step uint8

// The steps that are stored. Hours, and days outside UTC, are made of quarters
// of an hour, since every time zone's offset is a multiple of that; months are
// made of days.
const (
	StepMinute Step = iota
	StepQuarter
	StepDay
)

// Steps lists the stored steps.
var Steps = [...]Step{StepMinute, StepQuarter, StepDay}

// Duration returns the step's width.
func (s Step) Duration() time.Duration {
	return [...]time.Duration{time.Minute, 15 * time.Minute, 24 * time.Hour}[s]
}

// Start returns the start of the slot that holds the given Unix second. Days
// are UTC days.
func (s Step) Start(unix int64) int64 {
	w := int64(s.Duration() / time.Second)
	return unix - ((unix%w)+w)%w
}

// Slot names one row of kept usage: what one key, while it was in one group,
// used of one model in one slot of time.
type Slot struct {
	Step  Step
	Start int64 // Unix seconds
	Key   ID
	Group ID // the key's own group when it was spent; zero: none
	Model string
	// Account, when not zero, makes it another kind of row: what was charged to
	// that group as an account, by all keys that stood below it then. Key, Group
	// and Model are empty. Of a key the rows by key tell the same.
	Account ID
}

// Row is a slot with its totals.
type Row struct {
	Slot
	Totals
}

// RowQuery selects rows of one step by start in [From, To), Unix seconds.
type RowQuery struct {
	Step     Step
	From, To int64
	// Key, when not zero, selects one key's rows.
	Key ID
	// ByKey asks for rows apart by key. When it is false and Key is zero the
	// rows come summed over the keys of each group, with a zero Key.
	ByKey bool
	// Account, when not zero, selects the rows of one group as an account, and
	// those alone.
	Account ID
}
