package quota

import (
	"fmt"
	"time"
)

// Reason says why a call was refused: the codes of the refusal table, which
// clients, metrics and logs see.
type Reason string

// The reasons for a refusal.
const (
	InvalidKey          Reason = "invalid_api_key"
	ExpiredKey          Reason = "api_key_expired"
	DisabledKey         Reason = "api_key_disabled"
	AmbiguousCredential Reason = "ambiguous_credential"
	ModelNotAllowed     Reason = "model_not_allowed"
	AddressNotAllowed   Reason = "ip_not_allowed"
	RateLimited         Reason = "rate_limit_exceeded" // a limit that frees by itself
	QuotaSpent          Reason = "insufficient_quota"
	TooManyTokens       Reason = "request_too_large" // the input alone can never fit the limit
	BodyTooLarge        Reason = "body_too_large"
	InvalidBody         Reason = "invalid_body"
	UnknownCoding       Reason = "unsupported_encoding"
	Unmetered           Reason = "unmetered_call"
	StoreUnavailable    Reason = "quota_store_unavailable"
	TooManyFailures     Reason = "auth_throttled" // unknown keys from one address
)

// Never as a Wait says that waiting does not help.
const Never time.Duration = -1

// Refusal is why a call was not admitted. Refusals by a limit name it and say
// when it frees.
type Refusal struct {
	Reason Reason
	// Detail adds to the message what the reason leaves open.
	Detail string
	// Wait is how long until the call would fit if nothing else came; Never
	// when it would not. It is set when a limit refused, or for TooManyFailures.
	Wait time.Duration

	// What follows is set when a limit refused.
	Limit       LimitName
	Account     ID
	AccountName string
	Max         int64 // the limit, with grants
	Used        int64 // settled
	Reserved    int64 // held by calls under way
	Requested   int64 // what this call needed at the least
	// ResetsAt is when the limit's period ends; zero when it has no end.
	ResetsAt time.Time
}

// String says what refused, in one line, without secrets.
func (r *Refusal) String() string {
	if r.Limit == "" {
		return string(r.Reason)
	}
	return fmt.Sprintf("%s: %s of %s %q: limit %d, used %d, reserved %d, requested %d",
		r.Reason, r.Limit, r.Account.Kind(), r.AccountName, r.Max, r.Used, r.Reserved, r.Requested)
}

// Rate is the state of one limit as rate-limit headers show it.
type Rate struct {
	Limit     int64
	Remaining int64 // never negative
	// Reset is when the limit is full again; zero: never by itself.
	Reset time.Time
	// Window is the span that the limit is for; zero: a calendar period.
	Window time.Duration
}

// Rates are what the headers of an answer say: of the requests and the tokens
// the tightest limit, and what is left of the quotas.
type Rates struct {
	Requests, Tokens       Rate
	HasRequests, HasTokens bool
	QuotaRemaining         int64
	HasQuota               bool
}
