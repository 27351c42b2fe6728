package cli

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// parseAmount reads a whole number with an optional suffix k, M or G, as the
// Caddyfile takes it.
func parseAmount(s string) (int64, error) {
	digits, unit := s, int64(1)
	if n := len(s) - 1; n > 0 {
		if i := strings.IndexByte("kMG", s[n]); i >= 0 {
			digits = s[:n]
			for range i + 1 {
				unit *= 1000
			}
		}
	}
	unsigned := strings.TrimPrefix(digits, "-")
	x, ok := new(big.Rat).SetString(digits)
	if !ok || unsigned == "" || strings.Trim(unsigned, "0123456789.") != "" {
		return 0, fmt.Errorf("%q is not a number like 5000, 100k or 5M", s)
	}
	if x.Mul(x, new(big.Rat).SetInt64(unit)); !x.IsInt() {
		return 0, fmt.Errorf("%q is not a whole number", s)
	}
	n := x.Num()
	if !n.IsInt64() || n.Int64() > quota.MaxAmount || n.Int64() < -quota.MaxAmount {
		return 0, fmt.Errorf("%q is more than 2^53", s)
	}
	return n.Int64(), nil
}

// parseBound reads a limit: a number, unlimited, or none, which clears it.
func parseBound(s string) (b quota.Bound, err error) {
	switch s {
	case "none":
		return b, nil
	case "unlimited":
		return quota.Unlimited, nil
	}
	n, err := parseAmount(s)
	if err != nil || n < 0 {
		return b, fmt.Errorf("%q is neither a number like 60 or 100k, nor unlimited or none", s)
	}
	return quota.At(n), nil
}

// parseQuota reads a quota like "5M monthly": its tokens, and when it starts
// anew; "" when that is left out.
func parseQuota(s string) (tokens quota.Bound, reset string, err error) {
	words := strings.Fields(s)
	if len(words) == 0 || len(words) > 2 {
		return tokens, "", fmt.Errorf("%q is not a quota like \"5M monthly\"", s)
	}
	if tokens, err = parseBound(words[0]); err != nil {
		return tokens, "", err
	}
	if len(words) == 2 {
		reset = words[1]
		switch quota.Reset(reset) {
		case quota.ResetDaily, quota.ResetWeekly, quota.ResetMonthly, quota.ResetManual:
		default:
			return tokens, "", fmt.Errorf("%q is not daily, weekly, monthly or manual", reset)
		}
	}
	if words[0] == "none" && reset != "" {
		return tokens, "", fmt.Errorf("no quota is not %s", reset)
	}
	return tokens, reset, nil
}

// parsePercent reads a percentage, with its sign or without.
func parsePercent(s string) (float64, error) {
	p, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(s), "%"), 64)
	if err != nil || !(p > 0 && p <= 1000) {
		return 0, fmt.Errorf("%q is not a percentage like 80%%", s)
	}
	return p, nil
}

// parseExpiry reads when a key expires, as the API takes it: a date, a time in
// RFC 3339, or a duration from now, like 30d.
func parseExpiry(s string, now time.Time) (string, error) {
	if _, err := quota.ParseExpiry(s, "UTC"); err == nil {
		return s, nil
	}
	d, err := caddy.ParseDuration(s)
	if err != nil || d <= 0 {
		return "", fmt.Errorf("%q is not a date like 2027-01-31, a time in RFC 3339, a duration like 30d, or none", s)
	}
	return now.Add(d).UTC().Format(time.RFC3339), nil
}

// quotaText writes a quota as --quota reads it, and what else is set of it.
func quotaText(q *quota.Quota) string {
	if q == nil {
		return "-"
	}
	s := bound(q.Tokens)
	if q.Reset != "" {
		s += " " + string(q.Reset)
	}
	if q.Reset == quota.ResetManual || q.Reset == "" {
		return s
	}
	switch {
	case q.WeekStart != "" && q.Reset == quota.ResetWeekly:
		s += ", on " + q.WeekStart
	case q.MonthDay == quota.LastDay && q.Reset == quota.ResetMonthly:
		s += ", on the last day"
	case q.MonthDay != 0 && q.Reset == quota.ResetMonthly:
		s += ", on day " + strconv.Itoa(int(q.MonthDay))
	}
	if q.At != "" {
		s += ", at " + q.At
	}
	if q.TimeZone != "" {
		s += ", " + q.TimeZone
	}
	return s
}
