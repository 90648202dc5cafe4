// How the provider behaves: strict where the standards let it choose, as the broker has to live with that.

import { generateKeyPair, randomUUID } from 'node:crypto';
import { promisify } from 'node:util';

const HOUR = 60 * 60;
const DAY = 24 * HOUR;

export function configuration({ accounts, cookieKey, keys, store, ...client }) {
  const authentication = client.token_endpoint_auth_method ?? 'client_secret_basic';
  return {
    adapter: store.adapter,
    claims: {
      openid: ['sub'],
      email: ['email', 'email_verified'],
      profile: ['name', 'preferred_username'],
    },
    // The metadata names the client's own method alone, so that discovery has something to find.
    clientAuthMethods: [authentication],
    clients: [{
      client_id: client.client_id,
      client_secret: client.client_secret,
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
      redirect_uris: client.redirect_uris,
      token_endpoint_auth_method: authentication,
    }],
    // Otherwise an expired token would still work for a while.
    clockTolerance: 0,
    cookies: { keys: [cookieKey] },
    // A bot uses its tokens long after the browser has forgotten its session.
    expiresWithSession: () => false,
    features: {
      deviceFlow: { enabled: true },
      devInteractions: { enabled: true },
      dPoP: { enabled: true },
      introspection: { enabled: true },
      pushedAuthorizationRequests: { enabled: true },
      revocation: { enabled: true },
      userinfo: { enabled: true },
    },
    findAccount: (_ctx, sub) => accounts.find(sub),
    issueRefreshToken: (_ctx, { grantTypes }) => grantTypes.includes('refresh_token'),
    jwks: { keys },
    pkce: { required: () => true },
    rotateRefreshToken: true,
    scopes: ['openid', 'email', 'profile', 'offline_access'],
    ttl: {
      AccessToken: client.access_token_ttl,
      DeviceCode: HOUR,
      Grant: DAY,
      IdToken: HOUR,
      Interaction: HOUR,
      RefreshToken: DAY,
      Session: DAY,
    },
  };
}

/** A new key pair to sign ID tokens with, as a JWK with a key ID of its own. */
export async function newKey() {
  const { privateKey } = await promisify(generateKeyPair)('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), alg: 'RS256', kid: randomUUID(), use: 'sig' };
}
