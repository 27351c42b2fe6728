// node main.mjs <sdk>: makes the calls of each case, a JSON line of stdin, with
// that SDK as it comes, and prints a JSON line for each: what the SDK read of
// the last answer, or what its error holds.
//
// {"case", "url", "key", "script", "do": what call of <sdk>.mjs to make,
//  "spend": how many calls of "call" to make before, "twice": two at once}

import { createInterface } from 'node:readline';

const sdk = await import(`./${process.argv[2]}.mjs`);

async function run(c) {
  const call = (what) => sdk.calls[what](c);
  for (let i = 0; i < (c.spend ?? 0); i++) await call('call');
  if (!c.twice) return call(c.do);
  const both = await Promise.allSettled([call(c.do), call(c.do)]);
  const failed = both.find((one) => one.status === 'rejected');
  if (failed) throw failed.reason;
  return both[0].value;
}

async function report(c) {
  let line;
  try {
    line = await run(c);
  } catch (err) {
    line = { error: { class: err?.constructor?.name, ...sdk.read(err) } };
    if (!line.error.typed) line.stack = String(err?.stack ?? err);
  }
  console.log(JSON.stringify({ case: c.case, ...line }));
}

const running = [];
for await (const line of createInterface({ input: process.stdin })) running.push(report(JSON.parse(line)));
await Promise.all(running);
