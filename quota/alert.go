package quota

import "time"

// AlertKind says what an alert warns of.
type AlertKind string

// The kinds of alerts.
const (
	AlertThreshold      AlertKind = "threshold" // a part of a limit is used
	AlertExceeded       AlertKind = "exceeded"  // all of it is: a threshold of 100 % or more
	AlertForecast       AlertKind = "forecast"  // at this rate it will be used up before it resets
	AlertStoreDegraded  AlertKind = "store_degraded"
	AlertStoreRecovered AlertKind = "store_recovered"
)

// Alert is an alert that was fired: once for each threshold, account and
// period. Alerts on the store name no account.
type Alert struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Kind    AlertKind `json:"kind"`
	Account ID        `json:"account,omitzero"`
	Name    string    `json:"name,omitempty"` // of the account, when it fired
	// Limit is quota, tokens_per_day or requests_per_day.
	Limit       LimitName  `json:"limit,omitempty"`
	Threshold   float64    `json:"threshold,omitempty"` // in percent
	Used        int64      `json:"used"`
	Max         int64      `json:"max"`
	PeriodStart *time.Time `json:"period_start"` // null: the period has no start
	ResetsAt    *time.Time `json:"resets_at,omitempty"`
	// ExhaustedAt is when a forecast expects the limit to be used up.
	ExhaustedAt *time.Time `json:"exhausted_at,omitempty"`
	// Message says it all in one line.
	Message    string     `json:"message"`
	Deliveries []Delivery `json:"deliveries,omitempty"` // one for each webhook
}

// Delivery is how far a webhook has been told of an alert.
type Delivery struct {
	Target   string        `json:"target"` // the webhook's URL without user, password and query
	State    DeliveryState `json:"state"`
	Attempts int           `json:"attempts"`
	Error    string        `json:"error,omitempty"` // of the last attempt
}

// DeliveryState is how a delivery stands.
type DeliveryState string

// The states of deliveries.
const (
	DeliveryPending   DeliveryState = "pending"
	DeliveryDelivered DeliveryState = "delivered"
	DeliveryDead      DeliveryState = "dead" // given up
)
