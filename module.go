// Package llmquota is a quota gate for LLM APIs behind Caddy: it knows callers
// by API key, admits calls within the limits of the key and of its groups,
// meters the tokens that answers report, and charges them.
//
// This package is the only place that deals with Caddy's life cycle. What is
// admitted and charged is decided in quota/ledger, what providers say is read
// in dialect, what must last is kept in store, and whoever manages a running
// gate comes through admin.
package llmquota

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/cli"
	"github.com/llm-quota/caddy-llm-quota/admin/dashboard"
	"github.com/llm-quota/caddy-llm-quota/dialect"
	"github.com/llm-quota/caddy-llm-quota/limiter"
	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(Handler{})
	caddy.RegisterModule(BadgerStore{})
	caddy.RegisterModule(admin.API{})
	httpcaddyfile.RegisterGlobalOption("llm_quota", parseApp)
	httpcaddyfile.RegisterHandlerDirective("llm_quota", parseHandler)
	httpcaddyfile.RegisterDirectiveOrder("llm_quota", httpcaddyfile.After, "templates")
	caddy.RegisterModule(new(dashboard.Handler))
	httpcaddyfile.RegisterDirective("llm_quota_dashboard", dashboard.Parse)
	// After authentication, and before llm_quota, which would ask for a key.
	httpcaddyfile.RegisterDirectiveOrder("llm_quota_dashboard", httpcaddyfile.After, "templates")
	cli.Register(badger.Restore)
}

// App holds the keys, the groups and the ledger that all `llm_quota` handlers
// share. Without any option it keeps its ledger in a Badger store in Caddy's
// data directory, and keys and groups are managed through the admin API.
type App struct {
	// Where keys, counters and usage are kept. Default: badger, in the folder
	// llm_quota of Caddy's data directory.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=llm_quota.stores inline_key=engine"`
	// The IANA time zone in which quotas and days are reckoned that name none.
	// Default: UTC.
	TimeZone string `json:"time_zone,omitempty"`
	// How long usage is kept.
	Retention Retention `json:"retention,omitzero"`
	// What limits do while the store fails.
	OnStoreError ledger.OnStoreError `json:"on_store_error,omitzero"`
	// The shares of a limit, in percent, at which an alert fires, once in each of
	// its periods; [] is none. Keys and groups may set their own.
	// Default: 80 and 100.
	AlertAt []float64 `json:"alert_at,omitzero"`
	// The limits on which alerts fire: quota, tokens_per_day, requests_per_day.
	// Default: quota.
	AlertOn []quota.LimitName `json:"alert_on,omitempty"`
	// Whether an alert fires when a limit will be used up well before it resets,
	// if it goes on being used as it was. Default: true.
	Forecast *bool `json:"forecast,omitempty"`
	// Where alerts are sent.
	Webhooks []admin.Webhook `json:"webhooks,omitempty"`
	// Groups of keys, each under a shared budget.
	Groups []ledger.ConfigGroup `json:"groups,omitempty"`
	// API keys that the configuration sets. Others are made through the admin
	// API.
	Keys []ledger.ConfigKey `json:"keys,omitempty"`

	ctx     caddy.Context
	events  *caddyevents.App
	config  *ledger.Config
	targets []admin.Target
	store   Store
	pool    string // where the ledger is in the pool of open ones
	options string // of the store, as they were configured
	logger  *zap.Logger
	// logCheck is for the handlers, which are provisioned after the app.
	logCheck admin.LogCheck

	// The ledger is needed by the app itself from Start to Cleanup, and by each
	// of its requests: streams outlive Cleanup, and a request may come before
	// Start, since apps are started in no fixed order.
	refs     atomic.Int64
	mu       sync.Mutex
	keeper   *ledger.Keeper
	news     *admin.Announcer
	failures *limiter.Failures // of callers with unknown keys
	started  bool              // the app itself is among refs, and its configuration applied
	retired  bool              // Cleanup was called
	failed   error
	again    time.Time // when to try to open the store again, after failed
}

// Retention is how long usage is kept, by the width of its time slots.
type Retention struct {
	// Usage by the minute. Default: 48h.
	Minute caddy.Duration `json:"minute,omitempty"`
	// Usage by the hour. Default: 90d.
	Hour caddy.Duration `json:"hour,omitempty"`
	// Usage by the day. Default: 1095d.
	Day caddy.Duration `json:"day,omitempty"`
}

// Store is what a guest module of the namespace llm_quota.stores is.
type Store interface {
	// Location names what the store opens. Two configurations with the same
	// location share one open store.
	Location() (string, error)
	// Open opens the store.
	Open(logger *zap.Logger) (quota.Store, error)
	// SyncEvery is how often the store wants its Sync called; 0: never.
	SyncEvery() time.Duration
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "llm_quota", New: func() caddy.Module { return new(App) }}
}

// Provision checks the configuration. It opens nothing, since `caddy validate`
// runs it beside a running server.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.logger = ctx, ctx.Logger()
	// First, since the admin endpoint shows the metrics of the configuration
	// that was tried last, also when that has failed.
	if err := admin.RegisterMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if a.StoreRaw == nil {
		a.StoreRaw = json.RawMessage(`{"engine":"badger"}`)
	}
	a.options = string(a.StoreRaw) // which loading empties
	guest, err := ctx.LoadModule(a, "StoreRaw")
	if err != nil {
		return fmt.Errorf("loading the store module: %w", err)
	}
	a.store = guest.(Store)
	if a.pool, err = a.store.Location(); err != nil {
		return err
	}
	events, err := ctx.App("events")
	if err != nil {
		return err
	}
	a.events = events.(*caddyevents.App)
	replace := func(s string) (string, error) { return caddy.NewReplacer().ReplaceOrErr(s, true, true) }
	if a.targets, err = admin.Targets(a.Webhooks, replace); err != nil {
		return err
	}
	a.config, err = ledger.Config{
		Zone: a.TimeZone, OnStoreError: a.OnStoreError, Groups: a.Groups, Keys: a.Keys,
		AlertAt: a.AlertAt, AlertOn: a.AlertOn, NoForecast: a.Forecast != nil && !*a.Forecast,
		Retention: [...]time.Duration{time.Duration(a.Retention.Minute), time.Duration(a.Retention.Hour), time.Duration(a.Retention.Day)},
	}.Resolve(replace)
	return err
}

// Start opens the store, unless a request or an earlier configuration has, and
// applies the configured keys and groups.
// A store that cannot be opened now, but may be later, does not stop Caddy: calls
// are refused until it is open.
func (a *App) Start() error {
	_, err := a.enter()
	switch {
	case err == nil:
		a.leave()
	case errors.Is(err, quota.ErrUnavailable):
		a.logger.Error("the store cannot be opened; every call is refused until it can", zap.Error(err))
		return nil
	}
	return err
}

// Stop does nothing: requests of this configuration may still be under way.
func (a *App) Stop() error { return nil }

// Cleanup lets go of the store as soon as the last request has been settled.
func (a *App) Cleanup() error {
	a.mu.Lock()
	leave := a.started && !a.retired
	a.retired = true
	admin.Unopened(a, false)
	a.mu.Unlock()
	if leave {
		a.leave()
	}
	return nil
}

// Ledger returns the ledger, for those who look at or manage a running gate.
func (a *App) Ledger() (*ledger.Ledger, error) {
	l, err := a.enter()
	if err == nil {
		a.leave()
	}
	return l, err
}

// Version returns the version of this module, as the binary knows it.
func (a *App) Version() string { return admin.Version() }

// Emit emits an event through Caddy's events app.
func (a *App) Emit(event string, data map[string]any) { a.events.Emit(a.ctx, event, data) }

// Hub returns where events are read live; nil while the ledger cannot be used.
func (a *App) Hub() *admin.Hub {
	if _, err := a.enter(); err != nil {
		return nil
	}
	defer a.leave()
	return a.news.Hub()
}

// Targets returns the webhooks that are told of alerts.
func (a *App) Targets() []admin.Target { return a.targets }

// Done is closed when the configuration no longer runs.
func (a *App) Done() <-chan struct{} { return a.ctx.Done() }

// enter returns the ledger, which stays open until leave. The first call opens
// it and applies the configuration.
func (a *App) enter() (*ledger.Ledger, error) {
	for {
		n := a.refs.Load()
		if n == 0 {
			return a.open()
		}
		if a.refs.CompareAndSwap(n, n+1) {
			return a.keeper.Ledger, nil
		}
	}
}

// openAgain is how long a store that could not be opened is left alone.
const openAgain = 2 * time.Second

func (a *App) open() (*ledger.Ledger, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refs.Load() > 0 {
		a.refs.Add(1)
		return a.keeper.Ledger, nil
	}
	if a.failed != nil && time.Now().Before(a.again) {
		return nil, a.failed
	}
	b, err := acquire(a)
	if a.failed = err; err != nil {
		a.again = time.Now().Add(openAgain)
		admin.StoreError("open")
		admin.Unopened(a, true)
		return nil, err
	}
	admin.Unopened(a, false)
	refs := int64(1)
	if !a.retired {
		b.news.Apply(a, a.targets) // first, so that it is told what the ledger finds
		if err := b.keeper.Apply(time.Now(), a, a.config); err != nil {
			b.news.Withdraw(a)
			release(a.pool)
			return nil, err
		}
		a.started = true
		refs++
	}
	a.keeper, a.news, a.failures = b.keeper, b.news, b.failures
	a.refs.Store(refs)
	return a.keeper.Ledger, nil
}

// leave ends what enter began.
func (a *App) leave() {
	k, news := a.keeper, a.news
	if a.refs.Add(-1) > 0 {
		return
	}
	news.Withdraw(a)
	k.Withdraw(time.Now(), a)
	release(a.pool)
}

// books are the open ledgers by location, shared by the configurations that
// overlap during a reload. booksMu is held over every load and every release:
// the pool closes a store after it has forgotten it, and a directory cannot be
// opened twice.
var (
	books   = caddy.NewUsagePool()
	booksMu sync.Mutex
)

// book is an open ledger in the pool.
type book struct {
	keeper   *ledger.Keeper
	news     *admin.Announcer
	failures *limiter.Failures
	options  string // of the store that it was opened with
}

// Destruct closes the ledger when the last configuration has let go of it.
func (b *book) Destruct() error {
	admin.Unwatch(b.keeper.Ledger)
	b.news.Stop()
	err := b.keeper.Close(time.Now())
	b.news.Close()
	return err
}

func acquire(a *App) (*book, error) {
	booksMu.Lock()
	defer booksMu.Unlock()
	v, shared, err := books.LoadOrNew(a.pool, func() (caddy.Destructor, error) { return openBook(a) })
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	b := v.(*book)
	if shared && b.options != a.options && !a.retired {
		a.logger.Warn("changed options of an open store take effect at the next restart", zap.String("location", a.pool))
	}
	return b, nil
}

func openBook(a *App) (_ caddy.Destructor, err error) {
	defer func() { // a panic here would lock the pool for ever
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", a.pool, p)
		}
	}()
	st, err := a.store.Open(a.logger)
	if err != nil {
		return nil, err
	}
	logger := caddy.Log().Named("llm_quota") // it outlives this configuration
	l, err := ledger.Open(admin.Timed(st), time.Now(), func(op string, err error) {
		admin.StoreError(op)
		if op == "snapshot" { // all else is told when the store's health changes
			logger.Warn("no snapshot was saved", zap.Error(err))
		}
	})
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	news := admin.NewAnnouncer(l, logger)
	admin.Watch(l)
	return &book{keeper: ledger.Keep(l, a.store.SyncEvery()), news: news, failures: limiter.NewFailures(), options: a.options}, nil
}

func release(location string) {
	booksMu.Lock()
	defer booksMu.Unlock()
	if _, err := books.Delete(location); err != nil {
		caddy.Log().Named("llm_quota").Error("closing the store", zap.Error(err))
	}
}

// BadgerStore keeps everything in an embedded Badger database beside a journal
// file, on this machine. It needs no server.
type BadgerStore struct {
	// The directory. It is made with mode 0700 if it does not exist, and only
	// one process may use it at a time. Default: the folder llm_quota in
	// Caddy's data directory.
	Dir string `json:"dir,omitempty"`
	// The most of the ledger that a power loss may take; nothing is lost when
	// the process dies. 0 syncs every commit to disk. Default: 1s.
	SyncInterval *caddy.Duration `json:"sync_interval,omitempty"`
	// How often a snapshot of the store is saved in the directory's folder
	// snapshots, if something has changed. A start that finds the store damaged
	// makes it good from the newest. 0: never. Default: 1h.
	SnapshotInterval *caddy.Duration `json:"snapshot_interval,omitempty"`
	// How many snapshots are kept; fewer, if they would take more than a quarter
	// of the room on the disk. Default: 24.
	Snapshots *int `json:"snapshots,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (BadgerStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "llm_quota.stores.badger", New: func() caddy.Module { return new(BadgerStore) }}
}

// Location returns the directory, absolute and without symbolic links.
func (b *BadgerStore) Location() (string, error) {
	dir, err := caddy.NewReplacer().ReplaceOrErr(b.Dir, true, true)
	if err != nil {
		return "", fmt.Errorf("store directory: %w", err)
	}
	if dir == "" {
		dir = filepath.Join(caddy.AppDataDir(), "llm_quota")
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", fmt.Errorf("store directory: %w", err)
	}
	return resolved(dir), nil
}

// resolved returns a path without symbolic links, also while it, or the end of
// it, does not exist: the location must be the same before and after.
func resolved(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if up := filepath.Dir(path); err != nil && up != path {
		real = filepath.Join(resolved(up), filepath.Base(path))
	} else if err != nil {
		real = path
	}
	return real
}

// SyncEvery returns the interval at which the store is synced.
func (b *BadgerStore) SyncEvery() time.Duration {
	if b.SyncInterval == nil {
		return time.Second
	}
	return time.Duration(*b.SyncInterval)
}

// Open opens the database.
func (b *BadgerStore) Open(logger *zap.Logger) (quota.Store, error) {
	dir, err := b.Location()
	if err != nil {
		return nil, err
	}
	logger = logger.With(zap.String("dir", dir))
	every, snapshots := badger.DefaultSnapshotEvery, badger.DefaultSnapshots
	if b.SnapshotInterval != nil {
		every = time.Duration(*b.SnapshotInterval)
	}
	if b.Snapshots != nil {
		snapshots = *b.Snapshots
	}
	return badger.Open(badger.Options{
		Dir: dir, SyncInterval: b.SyncEvery(), SnapshotEvery: every, Snapshots: snapshots,
		Logger: func(format string, args ...any) { logger.Warn(fmt.Sprintf(format, args...)) },
	})
}

// Handler is the gate: it admits or refuses a request by the key that it
// carries, passes it on, and charges what its answer used.
//
// After admission these placeholders are set, for log fields and headers of
// handlers behind it: `{http.llm_quota.key.id}`, `.key.name`,
// `.key.metadata.<name>`, `.group.id`, `.group.name`, `.model`, `.decision`
// (admitted, observed, refused) and `.reason`; and, once it is answered,
// `.tokens.input`, `.tokens.output` and `.tokens.total`. The access log has the
// same under `llm_quota`.
type Handler struct {
	// What limits do. estimate: reserve the estimated input and the declared
	// maximum of output, and refuse what does not fit. strict: reserve an upper
	// bound of the input, and lower or set the request's maximum of output to
	// what is left, so that a quota cannot be passed by calls of text. observe:
	// never refuse by a limit, but record what would have been. Default: estimate.
	Admission string `json:"admission,omitempty"`
	// The one header in which the credential is looked for, instead of every
	// conventional place.
	CredentialHeader string `json:"credential_header,omitempty"`
	// A placeholder with the name of the key to charge, when another handler
	// has authenticated the caller. No credential is read then.
	Identity string `json:"identity,omitempty"`
	// The name of the key that callers without a credential are charged to.
	// Default: they are refused.
	Anonymous string `json:"anonymous,omitempty"`
	// The tokens held for output when a request declares no maximum.
	// Default: 1024.
	DefaultOutputReserve *int64 `json:"default_output_reserve,omitempty"`
	// strict: the maximum of output that a request is given which declares none,
	// if as much is left. Default: 4096.
	DefaultOutputCap *int64 `json:"default_output_cap,omitempty"`
	// What happens to calls whose usage cannot be read (batches, upgraded
	// connections) by keys under a token limit: deny or allow. Under strict
	// these are also calls whose input the body gives no bound for: images,
	// files, tools that run at the provider, stored context. Default: deny.
	Unmetered string `json:"unmetered,omitempty"`
	// The largest request body in bytes. Default: 32 MiB.
	MaxRequestBody int64 `json:"max_request_body,omitempty"`
	// Whether OpenAI-style upstreams are asked for usage in streams, where the
	// caller has not asked; what is added to the answer is taken out again.
	// Default: true.
	InjectUsage *bool `json:"inject_usage,omitempty"`
	// Whether answers carry the RateLimit and RateLimit-Policy headers of the
	// IETF draft beside the provider's own form. Default: false.
	IETFHeaders bool `json:"ietf_headers,omitempty"`
	// Whether the caller's credential is passed to the upstream. Default: false.
	ForwardCredential bool `json:"forward_credential,omitempty"`
	// The path at which a key is shown its own state, or "off".
	// Default: /llm_quota/me.
	SelfService string `json:"self_service,omitempty"`
	// Whether the span of Caddy's tracing handler is given attributes by
	// OpenTelemetry's conventions for generative AI: gen_ai.operation.name,
	// gen_ai.provider.name, gen_ai.request.model, gen_ai.response.model,
	// gen_ai.usage.*, and with them llm_quota.decision, llm_quota.reason,
	// llm_quota.key.id and llm_quota.group.id. Default: false.
	OTelGenAI bool `json:"otel_genai,omitempty"`

	app     *App
	options dialect.Options
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.llm_quota", New: func() caddy.Module { return new(Handler) }}
}

// Provision sets the defaults and finds the app.
func (h *Handler) Provision(ctx caddy.Context) error {
	app, err := ctx.App("llm_quota")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	if h.Identity == "" { // else there are no keys to show
		h.app.logCheck.Warn(ctx, h.app.logger, h.CredentialHeader)
	}
	if h.DefaultOutputReserve == nil {
		h.DefaultOutputReserve = new(int64(1024))
	}
	if h.DefaultOutputCap == nil {
		h.DefaultOutputCap = new(int64(4096))
	}
	if h.MaxRequestBody == 0 {
		h.MaxRequestBody = 32 << 20
	}
	if h.SelfService == "" {
		h.SelfService = "/llm_quota/me"
	}
	h.options = dialect.Options{
		MaxBody: h.MaxRequestBody, InjectUsage: h.InjectUsage == nil || *h.InjectUsage,
		Strict: h.Admission == "strict", DefaultReserve: *h.DefaultOutputReserve, DefaultCap: *h.DefaultOutputCap,
	}
	return nil
}

// Validate checks the options.
func (h *Handler) Validate() error {
	switch {
	case h.Admission != "" && h.Admission != "estimate" && h.Admission != "strict" && h.Admission != "observe":
		return fmt.Errorf("admission %q is not estimate, strict or observe", h.Admission)
	case h.Unmetered != "" && h.Unmetered != "deny" && h.Unmetered != "allow":
		return fmt.Errorf("unmetered %q is not deny or allow", h.Unmetered)
	case h.Identity != "" && (h.CredentialHeader != "" || h.Anonymous != ""):
		return errors.New("identity excludes credential and anonymous")
	case *h.DefaultOutputReserve < 0 || *h.DefaultOutputReserve > quota.MaxUsage:
		return fmt.Errorf("default_output_reserve %d is not between 0 and %d", *h.DefaultOutputReserve, quota.MaxUsage)
	case *h.DefaultOutputCap < 1 || *h.DefaultOutputCap > quota.MaxUsage:
		return fmt.Errorf("default_output_cap %d is not between 1 and %d", *h.DefaultOutputCap, quota.MaxUsage)
	case h.MaxRequestBody < 0:
		return fmt.Errorf("max_request_body %d is negative", h.MaxRequestBody)
	case h.SelfService != "off" && h.SelfService[0] != '/':
		return fmt.Errorf("self_service %q is neither a path nor off", h.SelfService)
	}
	return nil
}

// ServeHTTP is the way of one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	now := time.Now()
	trace := &admin.Trace{Start: now}
	trace.Publish(r)
	if h.OTelGenAI {
		defer trace.Annotate(r.Context())
	}
	books, err := h.app.enter()
	if err != nil {
		return h.unavailable(w, r, trace, err)
	}
	defer h.app.leave()
	trace.Hub = h.app.news.Hub()
	key, ref, err := h.identify(books, trace, r)
	if err != nil {
		return h.unavailable(w, r, trace, err)
	}
	if ref != nil {
		return refuse(w, dialect.Of(r), ref, nil, trace)
	}
	if r.URL.Path == h.SelfService && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		return admin.ServeSelf(w, books, key, now)
	}
	call, ref := dialect.Read(r, h.options)
	trace.Dialect, trace.Model = call.Dialect.Name(), call.Model
	if h.OTelGenAI {
		trace.Operation, trace.Stream = call.Operation(r.URL.Path), call.Stream
	}
	if ref == nil {
		ref = h.allows(call, trace.Policy)
	}
	if ref != nil {
		books.Refused(now, key, call.Model)
		return refuse(w, call.Dialect, ref, nil, trace)
	}
	reservation := new(ledger.Reservation)
	ask := ledger.Call{Model: call.Model, Observe: h.Admission == "observe"}
	ask.Input, ask.Output, ask.Least = call.Ask(h.options)
	if ref, err = books.Reserve(now, key, ask, reservation); err != nil {
		return h.unavailable(w, r, trace, err)
	}
	if h.options.Strict && ref == nil && !call.LimitOutput(reservation.Held-ask.Input) {
		err := errors.New("the output of a call could not be limited")
		return h.unavailable(w, r, trace, errors.Join(err, books.Void(now, reservation)))
	}
	if ref != nil {
		return refuse(w, call.Dialect, ref, &reservation.Rates, trace)
	}
	trace.Held = reservation.Held
	if reservation.Observed == nil {
		trace.Decide(admin.Admit, nil)
	} else {
		trace.Decide(admin.Observe, reservation.Observed)
	}
	answer := dialect.NewWriter(w, call, func(header http.Header, _ int) {
		dialect.SetRates(header, call.Dialect, &reservation.Rates, now)
		if h.IETFHeaders {
			dialect.SetRateLimit(header, &reservation.Rates, now)
		}
	})
	end := dialect.End{Panicked: true}
	defer func() { // reverse_proxy panics when a stream breaks; the panic goes on
		end.ClientGone = r.Context().Err() != nil
		o := answer.Outcome(end)
		if err := books.Settle(time.Now(), reservation, o); err != nil {
			h.app.logger.Error("settling a call", zap.Error(err))
		}
		if h.OTelGenAI {
			trace.Answered = answer.Model()
		}
		trace.Settled(books.Model(key, call.Model, !o.Failed), reservation.Charged)
		if told, ok := answer.Recalled(); ok {
			if found, err := books.Correct(time.Now(), key, told); err != nil {
				h.app.logger.Error("correcting the charge of a background call", zap.Error(err))
			} else if found {
				trace.Settled(books.Model(key, call.Model, false), told)
			}
		}
	}()
	if !h.ForwardCredential && h.Identity == "" {
		dialect.RemoveCredential(r, h.CredentialHeader)
	}
	call.Forward(r)
	end.Err = next.ServeHTTP(answer, r)
	end.Panicked = false
	if err := answer.Finish(); end.Err == nil {
		end.Err = err
	}
	return end.Err
}

// identify finds the key that the request is charged to, or the refusal.
func (h *Handler) identify(books *ledger.Ledger, trace *admin.Trace, r *http.Request) (key *ledger.Account, ref *quota.Refusal, err error) {
	name, secret := h.Anonymous, ""
	if h.Identity != "" {
		name = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).ReplaceAll(h.Identity, "")
	} else if secret, ref = dialect.ReadCredential(r, h.CredentialHeader); ref != nil {
		return nil, ref, nil
	}
	client, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, _ := netip.ParseAddr(client) // the zero address is in no range
	err = quota.ErrNotFound
	switch {
	case secret != "":
		key, ref, err = h.authenticate(books, trace.Start, secret, addr)
	case name != "":
		key, err = books.ByName(trace.Start, name)
	}
	if ref != nil {
		return nil, ref, nil
	}
	if err == nil {
		trace.Policy, err = books.Policy(trace.Start, key)
	}
	if errors.Is(err, quota.ErrNotFound) {
		return nil, &quota.Refusal{Reason: quota.InvalidKey}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading a key: %w", err)
	}
	if ref = trace.Policy.Check(trace.Start, addr); ref != nil {
		books.Refused(trace.Start, key, "")
	}
	return key, ref, nil
}

// epoch is where the ticks of failures begin. They are read off the monotonic
// clock.
var epoch = time.Now()

// authenticate finds the key that secret opens. A key in memory passes from
// everywhere, so that colleagues behind one address are not locked out by one
// of them. For any other the store is asked only while the address has not
// presented too many that are unknown.
func (h *Handler) authenticate(books *ledger.Ledger, now time.Time, secret string, addr netip.Addr) (*ledger.Account, *quota.Refusal, error) {
	key, hash := books.Recognize(now, secret)
	if key != nil {
		return key, nil, nil
	}
	tick := int64(now.Sub(epoch))
	if wait := h.app.failures.Wait(tick, addr); wait > 0 {
		return nil, &quota.Refusal{Reason: quota.TooManyFailures, Wait: max(time.Duration(wait), time.Second)}, nil
	}
	key, err := books.LookUp(now, secret, hash)
	if errors.Is(err, quota.ErrNotFound) {
		h.app.failures.Add(tick, addr)
	}
	return key, nil, err
}

// allows returns the refusal of a call that its key may not make at all.
func (h *Handler) allows(call *dialect.Call, key *ledger.Policy) *quota.Refusal {
	if ref := key.CheckModel(call.Model, call.Kind == dialect.Generate); ref != nil {
		return ref
	}
	if h.Unmetered == "allow" || h.Admission == "observe" || !key.HasTokenLimit() {
		return nil
	}
	switch {
	case call.Unmetered:
		return &quota.Refusal{Reason: quota.Unmetered}
	case call.Unbounded != "":
		return &quota.Refusal{Reason: quota.Unmetered, Detail: "What its input takes has no bound: " + call.Unbounded + "."}
	}
	return nil
}

// refuse answers in the caller's dialect, also where the site handles errors.
func refuse(w http.ResponseWriter, d dialect.Dialect, ref *quota.Refusal, rates *quota.Rates, trace *admin.Trace) error {
	trace.Dialect = d.Name()
	trace.Decide(admin.Refuse, ref)
	dialect.Refuse(w, d, ref, rates, trace.Start)
	return nil
}

// unavailable refuses a call because of our own store.
func (h *Handler) unavailable(w http.ResponseWriter, r *http.Request, trace *admin.Trace, err error) error {
	h.app.logger.Error("the ledger cannot be used", zap.Error(err))
	return refuse(w, dialect.Of(r), &quota.Refusal{Reason: quota.StoreUnavailable}, nil, trace)
}

// Interface guards.
var (
	_ caddy.Provisioner           = (*App)(nil)
	_ caddy.App                   = (*App)(nil)
	_ caddy.CleanerUpper          = (*App)(nil)
	_ admin.Gate                  = (*App)(nil)
	_ Store                       = (*BadgerStore)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
