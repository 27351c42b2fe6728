// What all views share: who reads, what groups and keys are called, how the
// gate does, and the stream of events.

import {eventsURL, get, getOr, path, request} from './api.js';

/** session is what the server says of the reader. */
export const session = {user: '', role: 'viewer', read_only: true, version: '', build: ''};

export async function loadSession() {
	Object.assign(session, await get('session'));
}

/** mayChange tells whether controls are shown. The server checks again. */
export const mayChange = () => !session.read_only;

let rulesLoading = null;

/** alertRules returns when alerts fire, as the configuration has it, or null. */
export function alertRules() {
	rulesLoading ??= getOr('status').then((s) => s?.alerts ?? null, (err) => {
		rulesLoading = null;
		throw err;
	});
	return rulesLoading;
}

let groupsLoading = null;
let groupsByID = new Map();

/**
 * groups returns all living groups by their ID. They are kept until stale;
 * fresh asks again, for what is chosen from them.
 */
export function groups({fresh = false} = {}) {
	if (!groupsLoading || fresh) {
		const mine = loadGroups().then((all) => {
			if (mine === groupsLoading) groupsByID = all;
			return all;
		}, (err) => {
			if (mine === groupsLoading) groupsLoading = null;
			throw err;
		});
		groupsLoading = mine;
	}
	return groupsLoading;
}

async function loadGroups() {
	const all = new Map();
	let cursor = '';
	for (let page = 0; page < 20; page++) {
		const answer = await get('groups', {limit: 1000, cursor});
		for (const g of answer.groups) all.set(g.id, g);
		cursor = answer.next_cursor;
		if (!cursor) break;
	}
	return all;
}

/** stale forgets the groups and the names of keys after a change. */
export function stale() {
	groupsLoading = null;
	rulesLoading = null;
	keys.clear();
}

/** groupName is the name of a group as far as it is known. */
export const groupName = (id) => (id ? groupsByID.get(id)?.name ?? id : 'No group');

/** rooted returns the groups as a list in which each follows its parent. */
export function rooted(all) {
	const children = Map.groupBy ? Map.groupBy(all.values(), (g) => (all.has(g.parent) ? g.parent : null)) : groupBy(all);
	const list = [];
	const walk = (parent, depth) => {
		for (const g of (children.get(parent) || []).sort((a, b) => a.name.localeCompare(b.name))) {
			list.push({group: g, depth});
			walk(g.id, depth + 1);
		}
	};
	walk(null, 0);
	return list;
}

function groupBy(all) {
	const by = new Map();
	for (const g of all.values()) {
		const parent = all.has(g.parent) ? g.parent : null;
		by.set(parent, [...(by.get(parent) || []), g]);
	}
	return by;
}

const keys = new Map();

/** key returns a key as it was when it was last asked for. */
export function key(id) {
	if (!keys.has(id)) {
		const loading = get(path('keys', id)).catch((err) => {
			keys.delete(id);
			if (err.status === 404) return {id, name: id};
			throw err;
		});
		keys.set(id, loading);
		if (keys.size > 500) keys.delete(keys.keys().next().value);
	}
	return keys.get(id);
}

/** known notes keys that an answer has brought along. */
export function known(list) {
	for (const k of list) keys.set(k.id, Promise.resolve(k));
}

/** accountName returns the name of the key or group with that ID. */
export async function accountName(id) {
	if (!id) return '';
	if (id.startsWith('grp_')) {
		await groups();
		return groupName(id);
	}
	return (await key(id)).name;
}

/** accountLink is where an account is shown. */
export const accountLink = (id) => `#/${id.startsWith('grp_') ? 'groups' : 'keys'}/${encodeURIComponent(id)}`;

/** patch changes an account. It returns what {data, etag} are then. */
export async function patch(kind, id, body, etag, query) {
	const answer = await request('PATCH', path(kind, id), {body, etag, query});
	stale();
	return answer;
}

// The stream of events.

const listeners = new Set();
const watchers = new Set();
let source = null;
let live = 'waiting';
let polling = null;

/** onEvent calls fn with {type, ...} of each event until the signal is aborted. */
export function onEvent(fn, signal) {
	listeners.add(fn);
	signal?.addEventListener('abort', () => listeners.delete(fn));
}

/** onLive calls fn with "live", "polling", "waiting" or "off", now and on each change. */
export function onLive(fn) {
	watchers.add(fn);
	fn(live);
}

function setLive(next) {
	if (live === next) return;
	live = next;
	for (const fn of watchers) fn(live);
}

const recent = [];

/** recently returns the last events since the page was opened, the oldest first. */
export const recently = (type) => recent.filter((e) => type.includes(e.type));

const tell = (event) => {
	if (event.type !== 'poll') recent.push(event);
	if (recent.length > 500) recent.shift();
	if (event.type === 'change' || event.type === 'poll') stale(); // somebody else may have made it
	for (const fn of listeners) fn(event);
};

/** poll says every 15 s that something may have happened. */
function poll(on) {
	clearInterval(polling);
	polling = on ? setInterval(() => tell({type: 'poll'}), 15000) : null;
}

/** watch follows the events while the page is seen. */
export function watch() {
	let again = false;
	const start = () => {
		if (document.hidden || source) return;
		source = new EventSource(eventsURL());
		source.onopen = () => {
			setLive('live');
			poll(false);
			if (again) tell({type: 'poll'}); // something may have been missed
			again = true;
		};
		source.onerror = () => {
			// CLOSED: there is no stream, or none for us. Else it is tried again.
			if (source.readyState === EventSource.CLOSED) {
				source = null;
				setTimeout(start, 60000);
			}
			setLive(source ? 'waiting' : 'polling');
			poll(true);
		};
		for (const type of ['settlement', 'refusal', 'alert', 'change']) {
			source.addEventListener(type, (e) => {
				try {
					tell({...JSON.parse(e.data), type});
				} catch { /* not an event of ours */ }
			});
		}
	};
	const stop = () => {
		source?.close();
		source = null;
		poll(false);
	};
	document.addEventListener('visibilitychange', () => (document.hidden ? stop() : start()));
	addEventListener('pagehide', stop);
	addEventListener('pageshow', start);
	start();
}

/** online notes whether the server was reached. */
export const online = (is) => {
	if (!is) setLive('off');
	else if (live === 'off') setLive(source?.readyState === EventSource.OPEN ? 'live' : 'polling');
};
