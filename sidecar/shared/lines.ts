import { writeSync } from 'node:fs'

/** Bytes that wait at most for a reader of standard output that has stopped; what comes then is dropped and counted. */
const maxWaiting = 1024 * 1024
/** A full pipe is tried again after this time, in ms. */
const retryMs = 10

/**
 * Writes lines to a descriptor once per turn of the event loop instead of one by one: a busy sidecar ends many
 * connections in one turn. Nothing is lost at an orderly end or an uncaught error; a SIGKILL takes the last turn.
 */
export class LineWriter {
  readonly #fd: number
  #waiting = ''
  #scheduled = false
  #dropped = 0

  constructor(fd: number) {
    this.#fd = fd
    process.once('exit', () => this.flush())
  }

  write(line: string): void {
    if (this.#waiting.length > maxWaiting) {
      this.#dropped++
      return
    }
    this.#waiting += line
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => this.flush())
  }

  flush(): void {
    this.#scheduled = false
    let bytes = Buffer.from(this.#waiting)
    try {
      while (bytes.length > 0) bytes = bytes.subarray(writeSync(this.#fd, bytes))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') {
        this.#waiting = bytes.toString()
        this.#scheduled = true
        setTimeout(() => this.flush(), retryMs)
        return
      }
      // Nobody reads any more (EPIPE and the like): a log must not end the process.
    }
    this.#waiting = ''
    if (this.#dropped > 0) {
      const dropped = this.#dropped
      this.#dropped = 0
      this.write(`{"level":"warn","msg":"log lines were dropped: nobody read them","dropped":${dropped}}\n`)
    }
  }
}
