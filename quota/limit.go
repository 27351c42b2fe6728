package quota

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// MaxAmount is the greatest number of tokens or requests that a limit may
// hold: 2^53, the greatest integer that every JSON reader keeps exact.
const MaxAmount = 1 << 53

// Bound is one limit as it is set: not at all (the zero value), to a number,
// or to "unlimited", which switches an inherited limit off. In JSON it is
// null, a number, or "unlimited".
type Bound struct {
	n int64 // 0 not set, 1 unlimited, else the number + 2
}

// Unlimited is the bound that never refuses.
var Unlimited = Bound{1}

// At returns the bound at n, or at the nearer end of [0, MaxAmount] when n lies
// outside.
func At(n int64) Bound { return Bound{min(max(n, 0), MaxAmount) + 2} }

// IsSet tells whether anything was set: a number or Unlimited.
func (b Bound) IsSet() bool { return b.n != 0 }

// Max returns the number, and whether there is one.
func (b Bound) Max() (int64, bool) { return b.n - 2, b.n >= 2 }

// Or returns b if it is set, else other.
func (b Bound) Or(other Bound) Bound {
	if b.IsSet() {
		return b
	}
	return other
}

// IsZero tells whether nothing was set, for JSON's omitzero.
func (b Bound) IsZero() bool { return !b.IsSet() }

// String returns "unset", "unlimited" or the number.
func (b Bound) String() string {
	switch {
	case b.n == 0:
		return "unset"
	case b == Unlimited:
		return "unlimited"
	}
	return strconv.FormatInt(b.n-2, 10)
}

// MarshalJSON writes null, "unlimited" or the number.
func (b Bound) MarshalJSON() ([]byte, error) {
	switch {
	case b.n == 0:
		return []byte("null"), nil
	case b == Unlimited:
		return []byte(`"unlimited"`), nil
	}
	return strconv.AppendInt(nil, b.n-2, 10), nil
}

// UnmarshalJSON reads what MarshalJSON writes; anything else is an error that
// shows it and says what is allowed. Whole numbers written with a point or an
// exponent are accepted.
func (b *Bound) UnmarshalJSON(data []byte) error {
	data = bytes.TrimSpace(data)
	if string(data) == "null" {
		*b = Bound{}
		return nil
	}
	if s, ok := jsonString(data); ok && s == "unlimited" {
		*b = Unlimited
		return nil
	}
	n, err := wholeNumber(data)
	if err != nil {
		return err
	}
	*b = At(n)
	return nil
}

// jsonString returns the string that data holds, if it is one.
func jsonString(data []byte) (s string, ok bool) {
	return s, len(data) > 0 && data[0] == '"' && json.Unmarshal(data, &s) == nil
}

// wholeNumber reads a JSON number that is whole and in [0, MaxAmount]. It is
// read digit by digit: a float64 would round 2^53 + 1.0 to a limit nobody set.
func wholeNumber(data []byte) (int64, error) {
	var num json.Number
	if len(data) == 0 || data[0] == '"' || json.Unmarshal(data, &num) != nil {
		return 0, fmt.Errorf("%s is not a number from 0 to 2^53, \"unlimited\" or null: %w", clipJSON(data), ErrInvalid)
	}
	digits, exponent, _ := strings.Cut(strings.ToLower(num.String()), "e")
	digits, negative := strings.CutPrefix(digits, "-")
	whole, fraction, _ := strings.Cut(digits, ".")
	digits = strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return 0, nil
	}
	significant := strings.TrimRight(digits, "0")
	var shift int
	if exponent != "" {
		var err error
		if shift, err = strconv.Atoi(exponent); err != nil {
			shift = math.MaxInt32 // no digits could make up for it
			if exponent[0] == '-' {
				shift = -shift
			}
		}
	}
	zeros := shift - len(fraction) + len(digits) - len(significant)
	if zeros < 0 {
		return 0, fmt.Errorf("%s is not a whole number: %w", clipJSON(data), ErrInvalid)
	}
	n := int64(math.MaxInt64)
	if len(significant)+zeros <= 16 { // 2^53 has as many
		n, _ = strconv.ParseInt(significant+strings.Repeat("0", zeros), 10, 64)
	}
	if negative || n > MaxAmount {
		return 0, fmt.Errorf("%s is not from 0 to 2^53: %w", clipJSON(data), ErrInvalid)
	}
	return n, nil
}

// clip quotes and shortens outside text for an error message.
func clip(b []byte) string {
	if len(b) > 40 {
		b = append(b[:40:40], "..."...)
	}
	return strconv.Quote(string(b))
}

// clipJSON does the same for a JSON value, which is shown as it is where that
// can be.
func clipJSON(b []byte) string {
	if len(b) > 40 || !Printable(string(b)) {
		return clip(b)
	}
	return string(b)
}

// Limits are the limits of an account besides its quota. Each field is null
// (inherited, or no limit), a whole number, or "unlimited".
type Limits struct {
	// The requests admitted in any 60 seconds. 0 admits none. Default: the
	// group's member value, else no limit.
	RequestsPerMinute Bound `json:"requests_per_minute"`
	// The tokens charged in any 60 seconds. Default: the group's member
	// value, else no limit.
	TokensPerMinute Bound `json:"tokens_per_minute"`
	// The requests admitted in a calendar day, in the time zone of the
	// account's quota, else the app's. Default: the group's member value,
	// else no limit.
	RequestsPerDay Bound `json:"requests_per_day"`
	// The tokens charged in a calendar day, in the time zone of the account's
	// quota, else the app's. Default: the group's member value, else no limit.
	TokensPerDay Bound `json:"tokens_per_day"`
	// The requests under way at one time. Default: the group's member value,
	// else no limit.
	ConcurrentRequests Bound `json:"concurrent_requests"`
}

// Or returns the limits with what is not set taken from other.
func (l Limits) Or(other Limits) Limits {
	return Limits{
		RequestsPerMinute:  l.RequestsPerMinute.Or(other.RequestsPerMinute),
		TokensPerMinute:    l.TokensPerMinute.Or(other.TokensPerMinute),
		RequestsPerDay:     l.RequestsPerDay.Or(other.RequestsPerDay),
		TokensPerDay:       l.TokensPerDay.Or(other.TokensPerDay),
		ConcurrentRequests: l.ConcurrentRequests.Or(other.ConcurrentRequests),
	}
}

// LimitName names one limit of an account, as the API writes it.
type LimitName string

// The limits that an account may have.
const (
	RequestsPerMinute  LimitName = "requests_per_minute"
	TokensPerMinute    LimitName = "tokens_per_minute"
	RequestsPerDay     LimitName = "requests_per_day"
	TokensPerDay       LimitName = "tokens_per_day"
	ConcurrentRequests LimitName = "concurrent_requests"
	TokenQuota         LimitName = "quota"
)

// LimitNames lists the limits in the order in which they are shown.
var LimitNames = []LimitName{
	TokenQuota, RequestsPerMinute, TokensPerMinute, RequestsPerDay, TokensPerDay, ConcurrentRequests,
}

// Bound returns the limit of that name. TokenQuota is not among Limits.
func (l *Limits) Bound(name LimitName) *Bound {
	switch name {
	case RequestsPerMinute:
		return &l.RequestsPerMinute
	case TokensPerMinute:
		return &l.TokensPerMinute
	case RequestsPerDay:
		return &l.RequestsPerDay
	case TokensPerDay:
		return &l.TokensPerDay
	case ConcurrentRequests:
		return &l.ConcurrentRequests
	}
	return nil
}
