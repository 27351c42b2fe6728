// Dialogs, and messages that go by themselves.

import {h, replace, unique} from './dom.js';

const open = [];

/**
 * dialog opens a modal dialog with a form. What it takes:
 *   title, body     what is shown
 *   submit          the name of the button that does it
 *   danger, narrow  looks
 *   onSubmit        async; the dialog closes when it returns, unless with false;
 *                   what it throws is shown above the buttons
 *   dirty           tells whether something would be lost by closing
 *   question        what is asked then
 *   cancel          the name of the other button
 * Focus goes back to where it was. It returns {close, form, busy, fail}.
 */
export function dialog({title, body, submit, danger, narrow, onSubmit, dirty, question = 'Close without saving? What you have entered will be lost.', cancel = 'Cancel', onClose}) {
	const id = unique('dialog');
	const from = document.activeElement;
	const problem = h('div', {class: 'note bad', role: 'alert', hidden: true});
	const button = submit && h('button', {type: 'submit', class: danger ? 'danger primary' : 'primary'}, submit);
	const form = h('form', {method: 'dialog', novalidate: true, autocomplete: 'off'},
		h('header', null, h('h2', {id}, title),
			h('button', {type: 'button', class: 'icon', 'aria-label': 'Close', on: {click: () => tryClose()}}, '×')),
		h('div', {class: 'body'}, body, problem),
		h('div', {class: 'actions'}, h('button', {type: 'button', on: {click: () => tryClose()}}, cancel), button));
	const el = h('dialog', {class: narrow ? 'narrow' : null, 'aria-labelledby': id}, form);
	let running = false;
	const self = {el, form, tryClose, close, dirty: () => Boolean(dirty?.())};

	function close() {
		if (!open.includes(self)) return;
		open.splice(open.indexOf(self), 1);
		el.close();
		el.remove();
		onClose?.();
		(from?.isConnected ? from : alike(from))?.focus();
	}

	function tryClose() {
		if (running) return false;
		if (self.dirty() && !confirm(question)) return false;
		close();
		return true;
	}

	el.addEventListener('cancel', (e) => {
		e.preventDefault();
		tryClose();
	});
	form.addEventListener('submit', async (e) => {
		e.preventDefault();
		if (running || !onSubmit) return;
		problem.hidden = true;
		running = true;
		form.setAttribute('aria-busy', 'true');
		if (button) button.disabled = true;
		try {
			if (await onSubmit(self) !== false) close();
		} catch (err) {
			fail(err);
		} finally {
			running = false;
			form.removeAttribute('aria-busy');
			if (button) button.disabled = false;
		}
	});

	function fail(err) {
		replace(problem, errorText(err));
		problem.hidden = false;
		problem.scrollIntoView({block: 'nearest'});
	}
	self.fail = fail;

	document.body.append(el);
	open.push(self);
	el.showModal();
	const first = form.querySelector('.body :is(input, select, textarea):not(:disabled)') || button || form.querySelector('.actions button');
	first?.focus();
	return self;
}

/** alike is what stands now where el stood before the page was refreshed. */
const alike = (el) => [...document.querySelectorAll('main a, main button')].find((x) => el && x.textContent === el.textContent) || document.getElementById('main');

/** errorText is an error, with what to do about it. */
export function errorText(err) {
	const text = err.message.slice(0, 1).toUpperCase() + err.message.slice(1);
	return [h('p', null, /[.!?…]$/.test(text) ? text : text + '.'), err.advice && h('p', {class: 'small'}, err.advice)];
}

/** problem is an error in the place of what could not be shown. */
export function problem(err, retry) {
	return h('div', {class: 'note bad', role: 'alert'}, errorText(err), retry && h('button', {type: 'button', on: {click: retry}}, 'Try again'));
}

/** mayLeave asks, if an open dialog has unsaved edits, and closes dialogs. */
export function mayLeave() {
	while (open.length) {
		if (!open.at(-1).tryClose()) return false;
	}
	return true;
}

/** isOpen tells whether a dialog is open. */
export const isOpen = () => open.length > 0;

addEventListener('beforeunload', (e) => {
	if (open.some((d) => d.dirty())) e.preventDefault();
});

/** toast shows a message for some seconds. */
export function toast(text) {
	const el = h('div', {class: 'toast'}, text);
	document.getElementById('toasts').append(el);
	setTimeout(() => el.remove(), 6000);
}

/** copyButton copies what text() returns. */
export function copyButton(text, label = 'Copy') {
	const button = h('button', {type: 'button', on: {click: async () => {
		try {
			await navigator.clipboard.writeText(text());
			button.textContent = 'Copied';
		} catch {
			button.textContent = 'Select and copy by hand';
		}
		setTimeout(() => (button.textContent = label), 3000);
	}}}, label);
	return button;
}
