// Prints a user's access token, or the link by which the user allows it. With the demo:
//
//     npm install @grpc/grpc-js @grpc/proto-loader
//     TOKEN_BROKER_ADDRESS=127.0.0.1:50051 TOKEN_BROKER_API_KEY=tbk_… \
//         node bots/examples/get_token.mjs demo demo/you

import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const includeDirs = [fileURLToPath(new URL('../../proto', import.meta.url))];
const contract = loadSync('tokenbroker/v1/token_broker.proto', { includeDirs, keepCase: true });
const { TokenBrokerService } = grpc.loadPackageDefinition(contract).tokenbroker.v1;

// Plaintext, as on loopback: across a network, the API key needs grpc.credentials.createSsl().
const broker = new TokenBrokerService(process.env.TOKEN_BROKER_ADDRESS, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set('authorization', `Bearer ${process.env.TOKEN_BROKER_API_KEY}`);
const call = (method, request) =>
  promisify(broker[method]).call(broker, request, metadata, { deadline: Date.now() + 30_000 });

// The token, or what to tell the user.
async function tokenOrLink(provider, subject) {
  const key = { provider, subject };
  try {
    return (await call('GetToken', { key })).token.access_token;
  } catch (error) {
    const details = String(error.metadata?.get('grpc-status-details-bin')); // the reason stands there
    if (!details.includes('AUTHORIZATION_REQUIRED')) throw error;
    return `Open ${(await call('Authorize', { key })).authorization_url}`;
  }
}

try {
  console.log(await tokenOrLink(...process.argv.slice(2)));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
broker.close();
