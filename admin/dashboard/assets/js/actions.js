// What operators do to keys and groups, each in a dialog.

import {download, get, path, request} from './api.js';
import {copyButton, dialog, errorText, toast} from './dialog.js';
import {debounce, h, replace} from './dom.js';
import {amount, number} from './format.js';
import {edited, editor, field, fieldLabel, groupSelect, Invalid, limitLabel, markInvalid, patchOf, valuesOf} from './forms.js';
import {groups, patch, stale} from './state.js';

const noun = (kind) => (kind === 'keys' ? 'key' : 'group');
const capital = (s) => s.slice(0, 1).toUpperCase() + s.slice(1);

/** shown marks an error at its field, or throws it on to the dialog. */
async function atField(el, work) {
	markInvalid(el, null);
	try {
		return await work();
	} catch (err) {
		if ((err instanceof Invalid || err.status === 400 || err.status === 409) && markInvalid(el, err)) return false;
		throw err;
	}
}

/** said tells why a dialog cannot be opened. */
const said = (err) => toast(err.message);

/** create makes a key or a group. done is called with what was made. */
export async function create(kind, preset, done) {
	const ed = await editor(kind, {...valuesOf({}, kind), ...preset}).catch(said);
	if (!ed) return;
	const base = {...ed.values(), ...(kind === 'keys' ? {group: ''} : {parent: ''})};
	const clean = ed.values();
	const imported = kind === 'keys' && h('input', {type: 'password', autocomplete: 'new-password', spellcheck: 'false'});
	const el = h('div', null, ed.el, imported && h('details', {class: 'data'}, h('summary', null, 'Import a secret that exists'),
		field('Secret', imported, '20 to 512 visible characters. Leave it empty to have one made.', 'secret')));
	dialog({
		title: `New ${noun(kind)}`, body: el, submit: `Create ${noun(kind)}`,
		dirty: () => edited(clean, ed.values()).length > 0 || Boolean(imported?.value),
		onClose: () => { if (imported) imported.value = ''; },
		onSubmit: (d) => atField(el, async () => {
			const body = patchOf(base, ed.values());
			if (!body.name) throw new Invalid('name', 'A name is needed.');
			if (imported?.value) body.secret = imported.value;
			const given = Boolean(body.secret);
			const {data} = await request('POST', kind, {body});
			stale();
			const {secret} = data;
			delete data.secret;
			d.close();
			if (secret && !given) await showSecret(data, secret);
			else toast(`The ${noun(kind)} “${data.name}” was created.`);
			done(data);
			return false;
		}),
	});
}

/** showSecret shows a new secret, once. It resolves when the dialog closes. */
export function showSecret(k, secret, why = 'was created') {
	return new Promise((resolve) => {
		let copied = false;
		const input = h('input', {value: secret, readOnly: true, 'aria-label': 'Secret', id: 'secret', on: {focus: () => input.select(), copy: () => (copied = true)}});
		const copy = copyButton(() => {
			copied = true;
			return input.value;
		});
		dialog({
			title: `The key “${k.name}” ${why}`, cancel: 'Done', question: 'Close without having copied the secret? It cannot be shown again.',
			dirty: () => !copied,
			body: [h('p', {class: 'note warn'}, h('strong', null, 'Copy the secret now. '), 'It is not stored, and will not be shown again.'),
				h('div', {class: 'copy'}, input, copy),
				h('p', {class: 'small muted'}, 'To try it against the gate:'),
				h('pre', null, tryLine('$KEY'))],
			onClose: () => {
				input.value = '';
				resolve();
			},
		});
		secret = '';
	});
}

/** tryLine is a call to a gate, for a shell. */
export const tryLine = (key) => `curl https://<your gate>/v1/chat/completions -H "Authorization: Bearer ${key}" \\\n  -H 'Content-Type: application/json' \\\n  -d '{"model":"<model>","messages":[{"role":"user","content":"Hello"}]}'`;

/** edit changes the settings of a key or a group. */
export async function edit(kind, id, done) {
	let {data, etag} = await request('GET', path(kind, id));
	const ed = await editor(kind, valuesOf(data, kind), {self: id});
	let base = ed.values();
	const changes = h('div', {role: 'alert'});
	const el = h('div', null, changes, ed.el);

	/** rebase takes what others changed, but where the reader changed it too. */
	async function rebase() {
		const mine = ed.values();
		({data, etag} = await request('GET', path(kind, id)));
		const before = base;
		ed.put(valuesOf(data, kind));
		base = ed.values();
		const theirs = edited(before, base);
		const both = theirs.filter((n) => edited({x: before[n]}, {x: mine[n]}).length && edited({x: base[n]}, {x: mine[n]}).length);
		ed.put({...base, ...Object.fromEntries(edited(before, mine).map((n) => [n, mine[n]]))});
		const text = (v) => (Array.isArray(v) ? v.map((p) => p.join(' = ')).join(', ') : v) || '(empty)';
		replace(changes, h('div', {class: 'note warn'},
			h('p', null, h('strong', null, `Somebody changed this ${noun(kind)} meanwhile. `), 'Their changes are in the form now, and yours are kept. Look it over, then save again.'),
			h('table', null, h('thead', null, h('tr', null, ['Field', 'Was', 'Is now', 'Yours'].map((t) => h('th', {scope: 'col'}, t)))),
				h('tbody', null, theirs.map((n) => h('tr', null, h('th', {scope: 'row'}, fieldLabel(n)), h('td', null, text(before[n])), h('td', null, text(base[n])), h('td', null, both.includes(n) ? text(mine[n]) : 'same')))))));
		changes.scrollIntoView({block: 'nearest'});
	}

	dialog({
		title: `Edit “${data.name}”`, body: el, submit: 'Save',
		dirty: () => edited(base, ed.values()).length > 0,
		onSubmit: () => atField(el, async () => {
			const body = patchOf(base, ed.values());
			if (Object.keys(body).length === 0) return true;
			try {
				const answer = await patch(kind, id, body, etag);
				toast(`“${answer.data.name}” was saved.`);
				done(answer.data);
				return true;
			} catch (err) {
				if (err.status !== 412) throw err;
				await rebase();
				return false;
			}
		}),
	});
}

/** setDisabled disables or enables keys, after a question when disabling. */
export function setDisabled(keys, disabled, done) {
	const many = keys.length > 1 ? `${keys.length} keys` : `“${keys[0].name}”`;
	dialog({
		title: `${disabled ? 'Disable' : 'Enable'} ${many}?`, narrow: true, submit: disabled ? 'Disable' : 'Enable', danger: disabled,
		body: h('p', null, disabled ? `Calls with ${keys.length > 1 ? 'them' : 'it'} are refused from now on. Settings and history stay.` : `Calls with ${keys.length > 1 ? 'them' : 'it'} are admitted again, within the limits.`),
		onSubmit: async () => {
			await each(keys, (k) => patch('keys', k.id, {disabled}));
			toast(`${many} ${keys.length > 1 ? 'were' : 'was'} ${disabled ? 'disabled' : 'enabled'}.`);
			done();
		},
	});
}

/** each does work for all items; of those that fail it tells. */
async function each(items, work) {
	const failed = [];
	for (const item of items) {
		try {
			await work(item);
		} catch (err) {
			if (items.length === 1) throw err;
			failed.push(`${item.name}: ${err.message}`);
		}
	}
	if (failed.length) throw new Error(`${failed.length} of ${items.length} failed. ${failed.slice(0, 5).join('; ')}${failed.length > 5 ? '; …' : ''}`);
}

/** rotate gives a key a new secret. */
export function rotate(k, done) {
	const grace = h('select', {value: '24h'}, [['0', 'At once'], ['1h', 'One hour'], ['24h', 'One day'], ['7d', 'Seven days'], ['30d', 'Thirty days']].map(([v, t]) => h('option', {value: v}, t)));
	dialog({
		title: `New secret for “${k.name}”`, narrow: true, submit: 'Make a new secret',
		body: field('The old secret stops working', grace, 'Until then both work, so that callers can change over.'),
		onSubmit: async (d) => {
			const {data} = await request('POST', path('keys', k.id, 'rotate'), {body: {grace: grace.value}});
			const {secret} = data;
			delete data.secret;
			d.close();
			await showSecret(data, secret, 'has a new secret');
			done(data);
			return false;
		},
	});
}

/** reset sets limits of an account back to nothing used. */
export function reset(kind, o, done) {
	const names = [...(o.state.quota ? ['quota'] : []), ...Object.keys(o.state.limits)];
	if (names.length === 0) {
		dialog({title: 'Nothing to reset', narrow: true, cancel: 'Close', body: h('p', null, `“${o.name}” has no limits that could be reset.`)});
		return;
	}
	const boxes = names.map((n, i) => h('input', {type: 'checkbox', value: n, checked: i === 0}));
	dialog({
		title: `Reset “${o.name}”`, narrow: true, submit: 'Reset', danger: true,
		body: [h('p', null, `What this ${noun(kind)} has used of these limits is set to nothing, for it alone. History stays. What was granted for the period ends.`),
			boxes.map((b) => h('label', {class: 'check'}, b, limitLabel(b.value)))],
		onSubmit: async () => {
			const limits = boxes.filter((b) => b.checked).map((b) => b.value);
			if (limits.length === 0) throw new Error('Choose at least one limit.');
			const {data} = await request('POST', path(kind, o.id, 'reset'), {body: {limits}});
			stale();
			toast(`“${o.name}” was reset.`);
			done(data);
		},
	});
}

/** grant adds tokens to the current period of a quota. */
export function grant(kind, o, done) {
	const tokens = h('input', {type: 'text', inputmode: 'text', placeholder: '100k'});
	const body = h('div', null, h('p', null, 'Adds to the quota for the current period alone. A negative number takes back.'),
		field('Tokens', tokens, o.state.quota ? `Now ${number(o.state.quota.remaining)} remain, ${number(o.state.quota.granted)} are granted.` : null, 'tokens'));
	dialog({
		title: `Grant tokens to “${o.name}”`, narrow: true, submit: 'Grant', body,
		onSubmit: () => atField(body, async () => {
			const negative = tokens.value.trim().startsWith('-');
			const n = amount(tokens.value.trim().replace(/^[-+]/, ''));
			if (Number.isNaN(n) || n === 0) throw new Invalid('tokens', 'This is a whole number such as 50000 or 50k.');
			const {data} = await request('POST', path(kind, o.id, 'grant'), {body: {tokens: negative ? -n : n}});
			stale();
			toast(`${number(n)} tokens were ${negative ? 'taken back' : 'granted'}.`);
			done(data);
		}),
	});
}

/** move puts keys into another group. */
export async function move(keys, done) {
	const all = await groups({fresh: true}).catch(said);
	if (!all) return;
	const select = groupSelect(all);
	if (keys.every((k) => k.group === keys[0].group)) select.value = keys[0].group || '';
	const carry = h('input', {type: 'checkbox'});
	const many = keys.length > 1 ? `${keys.length} keys` : `“${keys[0].name}”`;
	dialog({
		title: `Move ${many}`, narrow: true, submit: 'Move',
		body: [field('To the group', select), h('label', {class: 'check'}, carry, h('span', null, 'Carry along what was used in the current period. ',
			h('span', {class: 'muted'}, 'Otherwise it stays charged where it was spent.')))],
		onSubmit: async () => {
			await each(keys, (k) => patch('keys', k.id, {group: select.value || null}, undefined, carry.checked ? {carry: true} : {}));
			toast(`${many} ${keys.length > 1 ? 'were' : 'was'} moved.`);
			done();
		},
	});
}

/** assign puts keys that are searched for into a group. */
export function assign(group, done) {
	const chosen = new Map();
	const list = h('div', {class: 'picks'});
	const carry = h('input', {type: 'checkbox'});
	const said = h('p', {class: 'small muted', role: 'status'});
	const say = () => (said.textContent = chosen.size ? `${chosen.size} chosen` : 'None chosen yet');
	let asked = 0;
	const find = async (q) => {
		const turn = ++asked;
		try {
			const {keys} = await get('keys', {q, limit: 50});
			if (turn !== asked) return;
			const all = await groups();
			replace(list, keys.filter((k) => k.group !== group.id && k.source !== 'config').map((k) => h('label', null,
				h('input', {type: 'checkbox', checked: chosen.has(k.id), on: {change: (e) => {
					if (e.target.checked) chosen.set(k.id, k);
					else chosen.delete(k.id);
					say();
				}}}),
				h('span', {class: 'name'}, k.name), h('span', {class: 'small muted'}, all.get(k.group)?.name || 'No group'))));
			if (!list.children.length) replace(list, h('p', {class: 'empty'}, 'No keys that could be assigned.'));
		} catch (err) {
			replace(list, errorText(err));
		}
	};
	const search = h('input', {type: 'search', placeholder: 'Name or prefix', on: {input: debounce(() => find(search.value), 150)}});
	say();
	find('');
	dialog({
		title: `Assign keys to “${group.name}”`, submit: 'Assign', dirty: () => chosen.size > 0,
		body: [field('Find keys', search, 'The newest 50 that match are shown. Keys of the configuration are assigned there.'), list, said,
			h('label', {class: 'check'}, carry, 'Carry along what they used in the current period')],
		onSubmit: async () => {
			if (!chosen.size) throw new Error('Choose at least one key.');
			const n = chosen.size;
			await each([...chosen.values()], async (k) => {
				await patch('keys', k.id, {group: group.id}, undefined, carry.checked ? {carry: true} : {});
				chosen.delete(k.id);
			});
			toast(`${n} ${n > 1 ? 'keys were' : 'key was'} assigned.`);
			done();
		},
	});
}

/** remove deletes a key or a group, when its name has been typed. */
export function remove(kind, o, done) {
	const name = h('input', {type: 'text', spellcheck: 'false'});
	const full = kind === 'groups' && h('input', {type: 'checkbox'});
	const body = h('div', null,
		h('p', null, kind === 'keys' ? 'Its secret will never work again. Its history stays, and the name becomes free.' : 'Its history stays, and the name becomes free.'),
		full && h('label', {class: 'check'}, full, h('span', null, 'Also if it has keys or groups in it. ', h('span', {class: 'muted'}, 'They are moved out, and its limits hold for them no more.'))),
		field(`Type the name to delete it: ${o.name}`, name, null, 'typed'));
	dialog({
		title: `Delete the ${noun(kind)} “${o.name}”`, narrow: true, submit: 'Delete', danger: true, body,
		onSubmit: () => atField(body, async () => {
			if (name.value !== o.name) throw new Invalid('typed', 'This is not its name.');
			try {
				await request('DELETE', path(kind, o.id), {query: full && full.checked ? {force: true} : {}});
			} catch (err) {
				if (err.status !== 409 || !full || full.checked) throw err;
				throw new Error(`${err.message}. Move them out first, or tick the box above.`);
			}
			stale();
			toast(`${capital(noun(kind))} “${o.name}” was deleted.`);
			done();
		}),
	});
}

/** resetQuotas sets the quotas of several keys back to nothing used. */
export function resetQuotas(keys, done) {
	const with_ = keys.filter((k) => k.state.quota);
	const n = `${number(with_.length)} of ${number(keys.length)} keys`;
	dialog({
		title: 'Reset token quotas?', narrow: true, danger: true, submit: with_.length ? 'Reset' : null,
		body: h('p', null, with_.length ? `What ${n} have used of their token quotas is set to nothing, for them alone. History stays. What was granted for the period ends.` : 'None of these keys has a token quota.'),
		onSubmit: async () => {
			await each(with_, (k) => request('POST', path('keys', k.id, 'reset'), {body: {limits: ['quota']}}));
			stale();
			toast(`The quotas of ${n} were reset.`);
			done();
		},
	});
}

/** removeKeys deletes several keys, when it has been typed how many. */
export function removeKeys(keys, done) {
	if (keys.length === 1) {
		remove('keys', keys[0], done);
		return;
	}
	const words = `delete ${keys.length} keys`;
	const typed = h('input', {type: 'text', spellcheck: 'false'});
	const body = h('div', null, h('p', null, 'Their secrets will never work again. Their history stays, and the names become free.'),
		h('ul', {class: 'note names'}, keys.slice(0, 20).map((k) => h('li', null, k.name)), keys.length > 20 && h('li', {class: 'muted'}, `and ${number(keys.length - 20)} others`)),
		field(`Type this to delete them: ${words}`, typed, null, 'typed'));
	dialog({
		title: `Delete ${number(keys.length)} keys`, narrow: true, submit: 'Delete', danger: true, body,
		onSubmit: () => atField(body, async () => {
			if (typed.value !== words) throw new Invalid('typed', `These are not the words “${words}”.`);
			try {
				await each(keys, (k) => request('DELETE', path('keys', k.id)));
			} finally {
				stale();
				done();
			}
			toast(`${number(keys.length)} keys were deleted.`);
		}),
	});
}

/** csvLink saves usage as CSV. */
export const csvLink = (query) => h('a', {href: download('usage', {...query, format: 'csv'}), download: 'usage.csv', class: 'small'}, 'Save as CSV');

