// A certified OpenID Provider for the integration tests, which start it as
//
//     node tests/servers/oidc-provider.mjs '{"redirect_uris": ["http://127.0.0.1:8080/oauth2/callback/oidc"],
//         "client_id": "…", "client_secret": "…", "access_token_ttl": 300}'
//
// It prints one line, {"issuer": "…", "control": "…"}, once it listens, and ends on SIGTERM or when its
// stdin is closed, so that it never outlives its test.

import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

import { Accounts } from './oidc/accounts.mjs';
import { configuration, newKey } from './oidc/configuration.mjs';
import { controls } from './oidc/control.mjs';
import { Gate } from './oidc/gate.mjs';
import { Ledger } from './oidc/ledger.mjs';
import { Store } from './oidc/store.mjs';

// The library's notices go to stdout, which is for the one line alone.
console.info = console.error;

const stop = () => process.exit(0);
process.on('SIGTERM', stop);
process.stdin.on('end', stop).resume();

const store = new Store();
const accounts = new Accounts(store);
const ledger = new Ledger(store);
const gate = new Gate();
// The newest comes first, and signs; the others stay published, for ID tokens that are out already.
const keys = [await newKey()];

let answer;
const issuer = await listen(createServer(async (request, response) => {
  await gate.pass(request);
  answer(request, response);
}));
const settings = { ...JSON.parse(process.argv[2]), accounts, store, cookieKey: randomUUID() };
serve();

const control = await listen(createServer(controls({
  'GET /ledger': () => ledger.read(),
  'POST /rotate-keys': async () => {
    keys.unshift(await newKey());
    serve();
    return { kid: keys[0].kid };
  },
  'POST /change-sub': ({ from, to }) => accounts.changeSub(from, to),
  'POST /pause-token-endpoint': () => gate.pause(),
  'POST /resume-token-endpoint': () => gate.resume(),
  // Answers once a token request waits, so that a test need not guess when.
  'GET /paused-token-request': () => gate.arrival(),
})));
console.log(JSON.stringify({ issuer, control }));

// A provider takes its keys once, at its start. So new keys take a new one, in the place of the old one
// and with what it had stored.
function serve() {
  const provider = new Provider(issuer, configuration({ ...settings, keys }));
  ledger.watch(provider);
  answer = provider.callback();
}

async function listen(server) {
  await once(server.listen(0, '127.0.0.1'), 'listening');
  return `http://127.0.0.1:${server.address().port}`;
}
