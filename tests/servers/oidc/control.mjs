// The test's own way in: a JSON API beside the provider.

import { json } from 'node:stream/consumers';

/** Answers each request by the action of its method and path, which gets the JSON body if there is one. */
export function controls(actions) {
  return async (request, response) => {
    const action = actions[`${request.method} ${request.url}`];
    if (!action) {
      response.writeHead(404).end();
      return;
    }
    const hasBody = Number(request.headers['content-length']) > 0;
    const result = await action(hasBody ? await json(request) : {});
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(result ?? {}));
  };
}
