// The fields of keys and groups: what an object sets becomes text in fields,
// and the fields become what a request sets.

import {h, replace, unique} from './dom.js';
import {amount, localInput, number} from './format.js';
import {groups, rooted} from './state.js';

/** The limits beside the quota, as they are called. */
export const limitNames = {
	requests_per_minute: 'Requests per minute',
	tokens_per_minute: 'Tokens per minute',
	requests_per_day: 'Requests per day',
	tokens_per_day: 'Tokens per day',
	concurrent_requests: 'Concurrent requests',
};

export const limitLabel = (name) => (name === 'quota' ? 'Token quota' : limitNames[name] || name);

/** fieldLabel names a value of a form: "limits.tokens_per_day". */
export function fieldLabel(name) {
	const label = limitNames[name.split('.').pop()] || caps(name.replace('member.', '').replaceAll(/[._]/g, ' '));
	return name.startsWith('member.') ? `${label} of each member` : label;
}

/** Invalid is a field with something that cannot be sent. */
export class Invalid extends Error {
	constructor(field, message) {
		super(message);
		this.field = field;
	}
}

/** field puts a label, a hint and a place for an error around an input. */
export function field(label, input, hint, name) {
	input.id ||= unique('field');
	const about = unique('about');
	if (hint) input.setAttribute('aria-describedby', about);
	return h('div', {class: 'field', data: name ? {field: name} : {}}, h('label', {for: input.id}, label), input,
		hint && h('p', {class: 'hint', id: about}, hint), h('p', {class: 'error', hidden: true}));
}

/** markInvalid shows an error at the field that it is about. */
export function markInvalid(root, err) {
	for (const old of root.querySelectorAll('[aria-invalid]')) old.removeAttribute('aria-invalid');
	for (const e of root.querySelectorAll('.field > .error')) e.hidden = true;
	if (!err) return false;
	const places = [...root.querySelectorAll('[data-field]')];
	const names = err.field ? [err.field] : namesIn(err.message);
	const at = names.map((n) => places.find((f) => f.dataset.field === n)).find(Boolean) ||
		places.find((f) => names.some((n) => n.startsWith(f.dataset.field + '.')));
	if (!at) return false;
	const input = at.querySelector('input, select, textarea');
	const text = at.querySelector('.error');
	for (const d of [at.closest('details')]) if (d) d.open = true;
	text.textContent = err.message;
	text.hidden = false;
	input?.setAttribute('aria-invalid', 'true');
	input?.focus();
	return true;
}

/** namesIn lists the fields that the beginning of an error may name, the longest first: "quota: time_zone …", "key name …". */
function namesIn(message) {
	const words = (message.match(/[\w.]+/g) || []).slice(0, 4);
	const runs = words.flatMap((_, i) => words.map((_, j) => words.slice(i, j + 1))).filter((r) => r.length);
	return runs.sort((a, b) => b.length - a.length).map((r) => r.join('.'));
}

/** textOf shows a bound: "", "unlimited" or the number. */
const textOf = (bound) => (bound === null || bound === undefined ? '' : String(bound));

/** boundOf reads it back. */
function boundOf(text, name) {
	const t = text.trim().toLowerCase();
	if (t === '') return null;
	if (t === 'unlimited') return 'unlimited';
	const n = amount(t);
	if (Number.isNaN(n)) throw new Invalid(name, 'This is a whole number such as 20000 or 20k, the word unlimited, or nothing.');
	return n;
}

const listOf = (text) => text.split(/[\s,]+/).filter(Boolean);

/** inherited says what holds where a field is left empty. */
const inherited = (bound) => (bound === null || bound === undefined ? 'No limit' : bound === 'unlimited' ? 'Unlimited, inherited' : `${number(bound)}, inherited`);

const zones = () => (Intl.supportedValuesOf ? ['UTC', ...Intl.supportedValuesOf('timeZone').filter((z) => z !== 'UTC')] : []);
const weekdays = ['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday'];
const option = (value, label = value) => h('option', {value}, label);
const caps = (s) => s.slice(0, 1).toUpperCase() + s.slice(1);

/**
 * Values are what the fields of an object hold, by name: strings, and one
 * list for metadata. They are compared to find what was edited.
 */
export function valuesOf(o, kind) {
	const v = {name: o.name || '', ...quotaValues('quota', o.quota), ...limitValues('limits', o.limits)};
	v.alert_at = (o.alert_at || []).join(', ');
	v.metadata = Object.entries(o.metadata || {}).map(([k, x]) => [k, x]);
	if (kind === 'keys') {
		v.group = o.group || '';
		v.models = (o.models || []).join('\n');
		v.allowed_ips = (o.allowed_ips || []).join('\n');
		v.expires_at = localInput(o.expires_at);
	} else {
		v.parent = o.parent || '';
		Object.assign(v, quotaValues('member.quota', o.member?.quota), limitValues('member.limits', o.member?.limits));
	}
	return v;
}

const quotaFieldNames = ['tokens', 'reset', 'time_zone', 'at', 'week_start', 'month_day'];

function quotaValues(at, q) {
	return Object.fromEntries(quotaFieldNames.map((f) => [`${at}.${f}`, textOf(q?.[f]) || (f === 'reset' ? 'monthly' : '')]));
}

function limitValues(at, limits) {
	return Object.fromEntries(Object.keys(limitNames).map((n) => [`${at}.${n}`, textOf(limits?.[n])]));
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** edited lists the names of values that differ. */
export const edited = (a, b) => Object.keys(b).filter((name) => !same(a[name], b[name]));

/** patchOf is the merge patch that makes of the values old those that are new. */
export function patchOf(old, now) {
	const patch = {};
	const changed = edited(old, now);
	for (const name of changed) {
		if (name.endsWith('alert_at')) patch.alert_at = percentages(now.alert_at);
		else if (name === 'metadata') patch.metadata = metadataPatch(old.metadata, now.metadata);
		else if (name === 'models' || name === 'allowed_ips') patch[name] = listOf(now[name]);
		else if (name === 'expires_at') patch.expires_at = expiry(now.expires_at);
		else if (name === 'group' || name === 'parent') patch[name] = now[name] || null;
		else if (name.includes('limits.')) put(patch, name, boundOf(now[name], name));
	}
	if (changed.includes('name')) {
		if (!now.name.trim()) throw new Invalid('name', 'A name is needed.');
		patch.name = now.name;
	}
	for (const at of ['quota', 'member.quota']) {
		if (changed.some((n) => n.startsWith(at + '.'))) putQuota(patch, at, old, now);
	}
	return patch;
}

function put(patch, name, value) {
	const path = name.split('.');
	const last = path.pop();
	let o = patch;
	for (const p of path) o = o[p] ??= {};
	o[last] = value;
}

function putQuota(patch, at, old, now) {
	const tokens = boundOf(now[`${at}.tokens`], `${at}.tokens`);
	if (tokens === null) {
		if (old[`${at}.tokens`] === '') throw new Invalid(`${at}.tokens`, 'The rest of a quota needs a number of tokens.');
		put(patch, at, null);
		return;
	}
	const q = Object.fromEntries(quotaFieldNames.map((f) => [f, now[`${at}.${f}`] || null]));
	q.tokens = tokens;
	if (q.reset !== 'weekly') q.week_start = null;
	if (q.reset !== 'monthly') q.month_day = null;
	if (q.reset === 'manual') q.at = null;
	if (q.month_day && q.month_day !== 'last') q.month_day = Number(q.month_day);
	put(patch, at, q);
}

function percentages(text) {
	const items = text.split(/[\s,;%]+/).filter(Boolean).map(Number);
	if (items.some((n) => !(n > 0 && n <= 1000))) throw new Invalid('alert_at', 'These are percentages such as 50, 80, 100.');
	return items.length ? items : null;
}

function expiry(text) {
	if (!text) return null;
	const t = new Date(text);
	if (Number.isNaN(t.getTime())) throw new Invalid('expires_at', 'This is not a whole date and time.');
	return t.toISOString();
}

function metadataPatch(old, now) {
	const patch = {};
	for (const [k] of old) patch[k] = null;
	for (const [k, v] of now) {
		if (!k && !v) continue;
		if (!k) throw new Invalid('metadata', 'Each value needs a name.');
		patch[k] = v;
	}
	return patch;
}

/**
 * editor makes the fields for values; self is the ID of the group that is
 * edited. It returns {el, values(), put(values)}.
 */
export async function editor(kind, values, {self} = {}) {
	const all = await groups({fresh: true});
	const inputs = {};
	const add = (name, input) => (inputs[name] = input);
	const text = (name, props) => add(name, h('input', {type: 'text', spellcheck: 'false', ...props}));
	const area = (name, props) => add(name, h('textarea', {rows: 3, spellcheck: 'false', ...props}));
	const above = kind === 'keys' ? 'group' : 'parent';
	add(above, groupSelect(all, kind === 'groups' ? self : null));
	const metadata = pairs();
	const section = (title, ...fields) => h('fieldset', null, h('legend', null, title), fields);
	const el = h('div', null,
		h('div', {class: 'fields'}, field('Name', text('name', {maxlength: 128, required: true}), 'Shown to callers when they are refused. No slash.', 'name'),
			field(kind === 'keys' ? 'Group' : 'Parent group', inputs[above], kind === 'keys' ? 'It shares its budget, and its member defaults hold here.' : 'What is used here counts there too.', above)),
		section('Token quota', quotaFields('quota', text, add, 'No quota')),
		section('Limits', limitFields('limits', text)),
		kind === 'groups' && section('Defaults for each member', h('p', {class: 'muted small'}, 'What every key in this group has on its own, where it sets nothing itself.'),
			quotaFields('member.quota', text, add, 'No quota'), limitFields('member.limits', text)),
		kind === 'keys' && section('Who may use it, and for what',
			h('div', {class: 'fields'},
				field('Models', area('models', {placeholder: 'All models'}), 'One pattern a line; * stands for anything, as in gpt-4o*.', 'models'),
				field('Addresses', area('allowed_ips', {placeholder: 'All addresses'}), 'One address or range a line, as in 10.0.0.0/8.', 'allowed_ips')),
			field('Expires', add('expires_at', h('input', {type: 'datetime-local'})), 'In your time zone. Empty: never.', 'expires_at')),
		section('Notes and alerts',
			field('Alert at', text('alert_at', {placeholder: 'The gate’s own thresholds'}), 'Percentages of the quota and the daily limits, as in 50, 80, 100.', 'alert_at'),
			h('div', {class: 'field', data: {field: 'metadata'}}, h('span', {class: 'label'}, 'Metadata'), metadata.el, h('p', {class: 'error', hidden: true}))));
	if (kind === 'keys') {
		inputs.group.addEventListener('change', () => {
			const member = all.get(inputs.group.value)?.member;
			inputs['quota.tokens'].placeholder = member?.quota ? inherited(member.quota.tokens) : 'No quota';
			for (const n of Object.keys(limitNames)) inputs[`limits.${n}`].placeholder = inherited(member?.limits?.[n]);
		});
	}
	const made = {
		el,
		values: () => ({...Object.fromEntries(Object.entries(inputs).map(([n, i]) => [n, i.value])), metadata: metadata.get()}),
		put(v) {
			for (const [n, i] of Object.entries(inputs)) {
				if (n in v) i.value = v[n];
				i.dispatchEvent(new Event('change'));
			}
			metadata.put(v.metadata || []);
		},
	};
	made.put(values);
	return made;
}

/** groupSelect chooses a group, but none of those below the one that is excepted. */
export function groupSelect(all, except) {
	const inside = (g) => {
		for (let n = 0; g && n < 16; g = all.get(g.parent), n++) if (g.id === except) return true;
		return false;
	};
	return h('select', null, option('', 'None'), rooted(all).filter(({group}) => !except || !inside(group))
		.map(({group, depth}) => option(group.id, '\u2003'.repeat(depth) + group.name)));
}

function quotaFields(at, text, add, placeholder) {
	const list = unique('zones');
	const reset = add(`${at}.reset`, h('select', null, ['daily', 'weekly', 'monthly', 'manual'].map((r) => option(r, r === 'manual' ? 'Only by hand' : caps(r)))));
	const clock = field('At', add(`${at}.at`, h('input', {type: 'time'})), 'Local time. Empty: 00:00.', `${at}.at`);
	const week = field('Week starts', add(`${at}.week_start`, h('select', null, option('', 'Monday, the default'), weekdays.map((d) => option(d, caps(d))))), null, `${at}.week_start`);
	const month = field('Month starts on day', add(`${at}.month_day`, h('select', null, option('', '1, the default'), Array.from({length: 31}, (_, i) => option(String(i + 1))), option('last', 'The last'))), null, `${at}.month_day`);
	const timeZone = field('Time zone', text(`${at}.time_zone`, {list, placeholder: 'The gate’s own'}), 'Such as Europe/Berlin.', `${at}.time_zone`);
	const tokens = text(`${at}.tokens`, {inputmode: 'text', placeholder});
	const fit = () => {
		clock.hidden = reset.value === 'manual';
		week.hidden = reset.value !== 'weekly';
		month.hidden = reset.value !== 'monthly';
	};
	reset.addEventListener('change', fit);
	fit();
	return [h('div', {class: 'fields'},
		field('Tokens in each period', tokens, 'Such as 500k or 5M, or unlimited.', `${at}.tokens`), field('Starts anew', reset, null, `${at}.reset`), clock, week, month, timeZone),
	h('datalist', {id: list}, zones().map((z) => option(z)))];
}

function limitFields(at, text) {
	return h('div', {class: 'fields'}, Object.entries(limitNames).map(([name, label]) =>
		field(label, text(`${at}.${name}`, {placeholder: 'No limit'}), null, `${at}.${name}`)));
}

/** pairs edits a list of names and values. */
function pairs() {
	const rows = h('div');
	const row = (k = '', v = '') => {
		const el = h('div', {class: 'pair'},
			h('input', {value: k, placeholder: 'Name', 'aria-label': 'Name of metadata', maxlength: 128}),
			h('input', {value: v, placeholder: 'Value', 'aria-label': 'Value of metadata', maxlength: 1024}),
			h('button', {type: 'button', 'aria-label': 'Remove this entry', on: {click: () => el.remove()}}, '×'));
		return el;
	};
	const more = h('button', {type: 'button', on: {click: () => {
		const el = row();
		rows.append(el);
		el.firstChild.focus();
	}}}, 'Add an entry');
	return {
		el: h('div', null, rows, more),
		get: () => [...rows.children].map((r) => [...r.querySelectorAll('input')].map((i) => i.value)).filter(([k, v]) => k || v),
		put: (list) => replace(rows, list.map(([k, v]) => row(k, v))),
	};
}

/** amountOrNone reads a number that may be left out, as a text for a query. */
export function amountOrNone(text) {
	if (!text.trim()) return '';
	const n = amount(text);
	return Number.isNaN(n) ? text.trim() : String(n);
}
