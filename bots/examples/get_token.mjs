// Prints a user's access token at a provider, or else the link by which the user authorizes. With the demo:
//
//     TOKEN_BROKER_ADDRESS=127.0.0.1:50051 TOKEN_BROKER_API_KEY=tbk_… node get_token.mjs demo demo/you

import grpc from '@grpc/grpc-js';
import { fromJSON, loadSync } from '@grpc/proto-loader';
import { fileURLToPath } from 'node:url';

const includeDirs = [fileURLToPath(new URL('../../proto', import.meta.url))];
const contract = loadSync('tokenbroker/v1/token_broker.proto', { includeDirs, keepCase: true });
const { TokenBrokerService } = grpc.loadPackageDefinition(contract).tokenbroker.v1;

// Without TLS, as on loopback: across a network, the API key needs grpc.credentials.createSsl().
const broker = new TokenBrokerService(process.env.TOKEN_BROKER_ADDRESS, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set('authorization', `Bearer ${process.env.TOKEN_BROKER_API_KEY}`);

const [provider, subject] = process.argv.slice(2);
const request = { key: { provider, subject }, start_authorization: {} };
// Without a deadline, a call may wait forever. This one leaves time for a refresh at the provider.
const deadline = Date.now() + 30_000;
broker.GetToken(request, metadata, { deadline }, (error, response) => {
  if (error) {
    console.error(error.details);
    links(error).forEach((link) => console.log(link));
    process.exitCode = 1;
  } else {
    console.log(response.token.access_token);
  }
  broker.close();
});

// The details of an error come in a google.rpc.Status, of which this declares what it needs.
function links(error) {
  const { Status } = fromJSON({
    nested: {
      Any: { fields: { typeUrl: { id: 1, type: 'string' }, value: { id: 2, type: 'bytes' } } },
      Status: { fields: { details: { id: 3, rule: 'repeated', type: 'Any' } } },
    },
  }, { defaults: true });
  return error.metadata.get('grpc-status-details-bin')
    .flatMap((bytes) => Status.deserialize(bytes).details)
    .filter(({ typeUrl }) => typeUrl.endsWith('/tokenbroker.v1.AuthorizeResponse'))
    .map(({ value }) => contract['tokenbroker.v1.AuthorizeResponse'].deserialize(value).authorization_url);
}
