package admin

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// LogCheck warns of logs that show API keys. The zero value is ready for the
// handlers of one configuration.
type LogCheck struct {
	seen map[[2]string]bool // servers and headers
}

// Warn logs a warning to logger if the server that a handler is provisioned for
// has an access log, and the API key of a request would be readable in a line
// there, or in one that tells of its error. header is the only header in which
// keys come; "" stands for every conventional place. It warns once of a server.
//
// What would be readable is found by trying: each of the logs encodes a request
// of ours, which is written nowhere.
func (c *LogCheck) Warn(ctx caddy.Context, logger *zap.Logger, header string) {
	srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || srv.Logs == nil || c.seen[[2]string{srv.Name(), header}] {
		return
	}
	if c.seen == nil {
		c.seen = make(map[[2]string]bool)
	}
	c.seen[[2]string{srv.Name(), header}] = true
	sample := newSampleRequest(header, srv.Logs.ShouldLogCredentials)
	readable := map[string]bool{}
	var names []string
	for _, name := range loggersOf(srv.Logs) {
		found := false
		for _, enc := range encodersOf(ctx.Logger(name)) {
			for _, place := range sample.readable(enc, string(name)) {
				readable[place], found = true, true
			}
		}
		if found {
			names = append(names, string(name))
		}
	}
	if len(names) > 0 {
		logger.Warn("API keys are readable in logs: filter them, as the README of llm_quota shows",
			zap.String("server", srv.Name()), zap.Strings("loggers", names), zap.Strings("add_to_filter", slices.Sorted(maps.Keys(readable))))
	}
}

// loggerName is the name of a logger, in the form in which Caddy tells which
// logs take up what it says.
type loggerName string

// CaddyModule returns the Caddy module information. It is that of a part of the
// logger: a log for a part alone takes up what the logger of a module says.
func (n loggerName) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: caddy.ModuleID(n + ".sample"), New: func() caddy.Module { return n }}
}

// loggersOf returns the names of the loggers that a server uses for requests
// and for their errors.
func loggersOf(logs *caddyhttp.ServerLogConfig) []loggerName {
	hosts := map[string]bool{}
	if !logs.SkipUnmappedHosts {
		hosts[logs.DefaultLoggerName] = true
	}
	for _, names := range logs.LoggerNames {
		for _, name := range names {
			hosts[name] = true
		}
	}
	var all []loggerName
	for _, of := range []loggerName{"http.log.access", "http.log.error"} {
		for _, host := range slices.Sorted(maps.Keys(hosts)) {
			name := of
			if host != "" {
				name += "." + loggerName(host)
			}
			all = append(all, name)
		}
	}
	return all
}

// encoders collects the encoders of the logs behind a logger.
type encoders []zapcore.Encoder

// MarshalLogObject takes the encoder, and writes nothing to it.
func (e *encoders) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	if whole, ok := enc.(zapcore.Encoder); ok {
		*e = append(*e, whole)
	}
	return nil
}

// encodersOf returns copies of the encoders behind a logger: a core that is
// given a field shows it to a copy of its own. One that writes nothing has none.
func encodersOf(logger *zap.Logger) encoders {
	var all encoders
	logger.Core().With([]zapcore.Field{zap.Inline(&all)})
	return all
}

// sampleRequest is a request with a made-up key in each place where there may
// be one, to see which of them a log shows.
type sampleRequest struct {
	caddyhttp.LoggableHTTPRequest
	places map[string]string // by the made-up key, what to add to a filter
}

func newSampleRequest(header string, credentials bool) *sampleRequest {
	r := &http.Request{Method: http.MethodPost, Proto: "HTTP/1.1", Host: "localhost", RequestURI: "/", Header: http.Header{}}
	s := &sampleRequest{
		LoggableHTTPRequest: caddyhttp.LoggableHTTPRequest{Request: r, ShouldLogCredentials: credentials},
		places:              map[string]string{},
	}
	headers := []string{header}
	if header == "" {
		headers = []string{"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key"}
		r.RequestURI = "/?key=sample-key-in-the-query"
		s.places["sample-key-in-the-query"] = "request>uri query { delete key }"
	}
	for _, name := range headers {
		name = http.CanonicalHeaderKey(name)
		key := "sample-key-in-" + name
		r.Header.Set(name, key)
		s.places[key] = "request>headers>" + name + " delete"
	}
	return s
}

// readable returns what is to be added to a filter where enc encodes the
// requests of the logger of that name.
func (s *sampleRequest) readable(enc zapcore.Encoder, name string) (places []string) {
	line, err := enc.EncodeEntry(zapcore.Entry{Level: zapcore.ErrorLevel, Time: time.Now(), LoggerName: name, Message: "handled request"},
		[]zapcore.Field{zap.Object("request", s.LoggableHTTPRequest)})
	if err != nil {
		return nil // what cannot be written shows nothing
	}
	defer line.Free()
	for key, place := range s.places {
		if bytes.Contains(line.Bytes(), []byte(key)) {
			places = append(places, place)
		}
	}
	return places
}
