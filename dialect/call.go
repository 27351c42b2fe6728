package dialect

// Call is a request as the gate understands it.
type Call struct {
	Dialect Dialect
	Kind    Kind
	Model   string // as the request names it; empty when it names none that can be read
	Stream  bool   // the request asks for a streamed answer
	// Input is the estimate of the input's tokens; at least 1 unless Kind is Free.
	Input int64
	// MaxOutput is the most tokens that the request allows to be generated,
	// over all its choices; -1 when it sets no maximum.
	MaxOutput int64
	// Unmetered says that what the call uses cannot be read from its answer,
	// now or ever: batches, runs, upgraded connections.
	Unmetered bool
	// Recall is the name of a stored response that the call asks for: what its
	// answer tells was used, the call of that name used; see [Writer.Recalled].
	Recall string

	// What follows is filled in with [Options].Strict only.

	// Bound is an upper bound of the input's tokens; 0 if Unbounded is not
	// empty or Kind is Free.
	Bound int64
	// Unbounded, when not empty, names what there is in the call that the body
	// gives no bound for: context that the provider keeps, tools that it runs,
	// what is no text, what is not known. Such calls are to be treated like
	// unmetered ones: refused to keys under a token limit, or admitted with the
	// estimate where unmetered calls are allowed.
	Unbounded string
	// Choices is how many answers share the maximum of output, at least 1: no
	// smaller maximum makes sense. It is 0 if Kind is Free.
	Choices int64

	own      maximum // the provider's own maximum of output
	wire     *wire
	realtime bool   // it asks for a connection on which events are sent
	tunnel   bool   // which is the answer's body
	injected bool   // usage was asked for in the caller's stead: hide it again
	decoded  bool   // the body came coded and goes on plain
	read     bool   // the body was read
	body     []byte // what is sent on, if read
}
