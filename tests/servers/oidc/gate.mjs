// Lets requests for tokens wait, so that a test can do something while one is under way.

import { EventEmitter, once } from 'node:events';
import { buffer } from 'node:stream/consumers';
import { setImmediate } from 'node:timers/promises';

export class Gate {
  #paused = false;

  #waiting = 0;

  #events = new EventEmitter();

  pause() {
    this.#paused = true;
  }

  resume() {
    this.#paused = false;
    this.#events.emit('resumed');
  }

  /** Returns once a request waits. */
  async arrival() {
    if (this.#waiting === 0) {
      await once(this.#events, 'arrived');
    }
  }

  /** Returns once the request may go on. */
  async pass(request) {
    if (!this.#paused || new URL(request.url, 'http://localhost').pathname !== '/token') {
      return;
    }
    // Read before the wait, as by a server that is slow: what has arrived is done, even if the client
    // has gone by then. The provider takes the body from here.
    request.body = await buffer(request);
    while (this.#paused) {
      this.#waiting += 1;
      this.#events.emit('arrived');
      await once(this.#events, 'resumed');
      this.#waiting -= 1;
    }
    // One after the other: the provider cannot tell that a token is reused at the very same time.
    await setImmediate();
  }
}
