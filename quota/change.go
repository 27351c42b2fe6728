package quota

import (
	"encoding/json"
	"time"
)

// Author is who makes a change, and by what.
type Author struct {
	// Actor names the person or program, as far as it is known: the user of the
	// dashboard, the subject of a client certificate, the system's user at the
	// command line. "" is whoever may reach the admin endpoint.
	Actor string `json:"actor"`
	// Source is api, dashboard, cli or config.
	Source string `json:"source"`
}

// The sources of changes.
const (
	ByAPI       = "api"
	ByDashboard = "dashboard"
	ByCLI       = "cli"
	ByConfig    = "config"
)

// Action is what a change does.
type Action string

// The actions.
const (
	ActionCreate   Action = "create"
	ActionUpdate   Action = "update"
	ActionDisable  Action = "disable" // an update of nothing else, as the next two
	ActionEnable   Action = "enable"
	ActionMove     Action = "move" // to another group
	ActionDelete   Action = "delete"
	ActionRotate   Action = "rotate"
	ActionReset    Action = "reset"
	ActionGrant    Action = "grant"
	ActionTakeOver Action = "take_over" // the configuration took over what the API had made
	ActionRemove   Action = "remove"    // the configuration no longer holds it
	ActionPutBack  Action = "put_back"  // the configuration holds it again
)

// Change is an entry of the audit log. Before and After hold the settings of a
// key or group or, of a reset or a grant, the counters in question; never a
// secret.
type Change struct {
	ID   string    `json:"id"`
	Time time.Time `json:"time"`
	Author
	Action Action          `json:"action"`
	Object ID              `json:"object"` // the key or group
	Name   string          `json:"name"`   // its name after the change
	Before json.RawMessage `json:"before"` // null: it was not there
	After  json.RawMessage `json:"after"`  // null: it is not there
}

// Image is what the audit log shows of a key's settings.
func (k *Key) Image() any {
	return struct {
		Name     string `json:"name"`
		Group    ID     `json:"group"`
		Prefix   string `json:"prefix"`
		Source   Source `json:"source"`
		Disabled bool   `json:"disabled"`
		Removed  bool   `json:"removed,omitempty"`
		KeyRules
	}{k.Name, k.Group, k.Prefix, k.Source, k.Disabled, k.Removed, k.KeyRules}
}

// Image is what the audit log shows of a group's settings.
func (g *Group) Image() any {
	return struct {
		Name    string `json:"name"`
		Parent  ID     `json:"parent"`
		Source  Source `json:"source"`
		Removed bool   `json:"removed,omitempty"`
		GroupRules
	}{g.Name, g.Parent, g.Source, g.Removed, g.GroupRules}
}
