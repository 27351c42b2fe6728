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

	wire     *wire
	realtime bool   // it asks for a connection on which events are sent
	tunnel   bool   // which is the answer's body
	injected bool   // usage was asked for in the caller's stead: hide it again
	decoded  bool   // the body came coded and goes on plain
	read     bool   // the body was read
	body     []byte // what is sent on, if read
}
