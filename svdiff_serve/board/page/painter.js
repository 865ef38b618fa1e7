// Live previews: always of the newest position of the hand, few steps first, then more; never an older one after a newer.
import { Gone, lines, Refused } from "./api.js";
import { requestOf } from "./job.js";

const MOST_OPEN = 3;
const KEPT = 24 * 2 ** 20; // characters of pictures that are kept, so that undo and A/B show them at once
const MOST_KEPT = 256; // pictures, and mixes of which is kept what is to be known: more would fill memory for an hour

/** Pictures that were painted to the end, those used last. */
class Kept {
  #found = new Map();
  #size = 0;

  get(key) {
    const picture = this.#found.get(key);
    if (picture) {
      this.#found.delete(key);
      this.#found.set(key, picture);
    }
    return picture;
  }

  put(key, picture) {
    if (this.#found.has(key)) return;
    this.#found.set(key, picture);
    this.#size += picture.url.length + key.length;
    for (const [oldest, { url }] of this.#found) {
      if (this.#size <= KEPT && this.#found.size <= MOST_KEPT) break;
      this.#found.delete(oldest);
      this.#size -= url.length + oldest.length;
    }
  }
}

/** Asks for pictures of jobs. Tells `picture`, `check`, `problem` and `rest`, each with its move in `detail`. */
export class Painter extends EventTarget {
  #server;
  #client = crypto.getRandomValues(new Uint32Array(4)).join("").slice(0, 40);
  #kept = new Kept();
  #checks = new Map(); // by mix: what is to be known of it
  #job = null; // the newest
  #move = 0; // of the request sent last
  #running = null; // that request, until it has ended
  #open = new Set(); // requests whose answers have not ended: a newer one ends them on the server, so that connections last
  #pending = false; // whether the newest job waits for the first stage of the one that runs

  constructor(server) {
    super();
    this.#server = server;
  }

  /**
   * Paint a job, the newest one from now on.
   *
   * While the hand moves, a request that runs may bring its first stage, or a fast hand would never see a picture; the
   * newest position is sent then. The end of a move is sent at once, and takes the place of whatever runs.
   */
  want(job, settled) {
    this.#job = job;
    if (this.#server.gone) return;
    if (!settled && this.#running && !this.#running.seen) {
      this.#pending = true;
      return;
    }
    this.#send();
  }

  #send() {
    const job = this.#job;
    const lacking = job.frames.filter(({ key }) => !this.#kept.get(key));
    // Of pictures that are kept what is said is kept as well, or else it is asked for with them.
    const missing = lacking.length || this.#said(job).every(Boolean) ? lacking : job.frames;
    const same = this.#running && keysOf(missing, job) === keysOf(this.#running.missing, this.#running.job);
    this.#pending = false;
    const move = same ? this.#move : ++this.#move;
    for (const frame of job.frames) {
      const kept = this.#kept.get(frame.key);
      if (kept) this.#tell("picture", { move, frame, stage: job.stages.length - 1, last: true, ...kept });
    }
    if (!same) this.#paint(job, missing, move); // or else what lacks is on its way, if for another view
    this.#check(move);
  }

  #paint(job, missing, move) {
    const [oldest] = this.#open;
    if (this.#open.size >= MOST_OPEN) oldest.ended.abort();
    if (missing.length) this.#run(job, missing, move);
    else {
      this.#running?.ended.abort();
      this.#running = null;
      this.#tell("rest", { move, of: job });
    }
  }

  async #run(job, missing, move) {
    const own = { job, missing, move, seen: false, ended: new AbortController(), count: 0 };
    this.#running = own;
    this.#open.add(own);
    this.#tell("begun", { move, missing });
    try {
      const body = requestOf(job, missing, this.#client, move);
      const answer = await this.#server.post("board/preview", body, own.ended.signal);
      for await (const line of lines(answer)) this.#take(line, own);
      if (this.#running === own && !own.done) throw new Gone("the stream was cut off");
    } catch (error) {
      if (this.#running === own) this.#failed(error, own);
    }
    this.#open.delete(own);
    if (this.#running === own) this.#running = null;
  }

  #take(line, own) {
    if (line.kind === "replaced" || line.kind === "done") own.done = true;
    if (this.#running !== own || line.move !== this.#move) return; // the hand is elsewhere
    const { job, missing, move } = own;
    if (line.kind === "check") {
      job.checked.forEach((key, index) => {
        this.#checks.delete(key); // it is the newest now
        this.#checks.set(key, line.checks[index]);
      });
      for (const oldest of this.#checks.keys()) {
        if (this.#checks.size <= MOST_KEPT) break;
        this.#checks.delete(oldest);
      }
      this.#check(move);
    }
    if (line.kind === "error") {
      own.done = true;
      this.#tell("problem", { move, message: line.error.message });
      if (line.retry_after) this.#again(own, line.retry_after);
      if (line.error.code === "shutting_down") this.#server.lost(); // what is not painted is asked of the next one
    }
    if (line.kind === "picture") {
      const { key } = missing[line.number];
      const last = line.stage === job.stages.length - 1;
      const picture = { url: `data:image/png;base64,${line.png}`, steps: line.steps, seconds: line.seconds };
      if (last) this.#kept.put(key, picture);
      const frame = this.#job.frames.find((each) => each.key === key);
      if (frame) this.#tell("picture", { move, frame, stage: line.stage, last, ...picture });
      if (!own.seen && ++own.count === missing.length) {
        own.seen = true;
        if (this.#pending) this.#send();
      }
    }
    if (line.kind === "done") this.#tell("rest", { move, of: job });
  }

  /** What is known of a job's mixes; undefined for those of which nothing is. */
  #said(job) {
    return job.checked.map((key) => this.#checks.get(key));
  }

  /** Tell what is known of the newest job's mixes: of pictures that are kept nobody says it again. */
  #check(move) {
    const checks = this.#said(this.#job);
    if (checks.every(Boolean)) this.#tell("check", { move, checks, of: this.#job });
  }

  #failed(error, own) {
    if (error instanceof Refused) {
      if (error.status === 503) this.#server.lost();
      this.#tell("problem", { move: own.move, message: error.message });
      if (error.status === 429) this.#again(own, error.wait);
    } else {
      this.#server.lost();
    }
  }

  /** Ask after some seconds for what lacks, if the hand has not moved on: pictures of few steps are not paid for twice. */
  #again(own, seconds) {
    if (this.#running === own) this.#running = null;
    const again = () => {
      if (this.#move !== own.move) return;
      if (own.seen) this.#job = { ...this.#job, stages: this.#job.stages.slice(-1) };
      this.#send();
    };
    setTimeout(again, 1000 * Math.max(1, seconds));
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }
}

function keysOf(frames, job) {
  return JSON.stringify([frames.map(({ key }) => key), job.stages]);
}
