import type { Port } from './lanes.ts'
import { drainWakes, Epoll } from './libc.ts'

/** Something that the loop gives turns: `more` when there is something to do without waiting. */
export interface Task {
  /** Of the loop only: its place among those that are to get a turn, or -1. */
  place: number
  turn(): 'waiting' | 'more' | 'finished'
}

/** Called before each wait; returns how long it may last at most, in ms, or -1. */
export type BeforeWaiting = (nowMs: number) => number

/** Of two waits in ms, of which -1 is one without end. */
export function sooner(a: number, b: number): number {
  return a < 0 ? b : b < 0 || a < b ? a : b
}

/** One thread, one epoll set, no event loop of Node's: it blocks in epoll_wait only. */
export class Loop {
  readonly #epoll: Epoll
  readonly #wakeFd: number
  readonly #onWake: () => void
  readonly #beforeWaiting: BeforeWaiting[] = []
  /** By descriptor. */
  readonly #watched: ({ task: Task; port: Port } | undefined)[] = []
  /**
   * Those that are to get a turn. No Set: under thousands of comings and goings a second it makes new tables all the time,
   * and each that has become old keeps what it held, and the next table, until the next collection of all.
   */
  readonly #busy: (Task | undefined)[] = []
  #busyCount = 0
  #woken = false

  /** `onWake` is called when the counter `wakeFd` was added to. */
  constructor(epollFd: number, wakeFd: number, onWake: () => void) {
    this.#epoll = new Epoll(epollFd)
    this.#wakeFd = wakeFd
    this.#onWake = onWake
    this.#epoll.add(wakeFd)
  }

  before(hook: BeforeWaiting): void {
    this.#beforeWaiting.push(hook)
  }

  /** False when the kernel refuses. */
  watch(task: Task, port: Port): boolean {
    this.#watched[port.fd] = { task, port }
    return this.#epoll.add(port.fd)
  }

  /** Another task cares for a descriptor that is watched. */
  hand(task: Task, port: Port): void {
    this.#watched[port.fd] = { task, port }
  }

  /** For descriptors that live on, or have duplicates. */
  unwatch(fd: number): void {
    this.#epoll.remove(fd)
    this.#watched[fd] = undefined
  }

  /** For descriptors that are closed at once and have no duplicates: the kernel forgets those by itself. */
  forget(fd: number): void {
    this.#watched[fd] = undefined
  }

  /** The task gets a turn, and goes on getting them until it waits. */
  stir(task: Task): void {
    if (task.place >= 0) return
    task.place = this.#busyCount
    this.#busy[this.#busyCount++] = task
  }

  rest(task: Task): void {
    if (task.place >= 0) this.#busy[task.place] = undefined
    task.place = -1
  }

  run(): never {
    const onEvent = (fd: number, events: number) => this.#onEvent(fd, events)
    for (;;) {
      this.#epoll.wait(this.#timeoutMs(), onEvent)
      this.#heedWakes()
      this.#round()
    }
  }

  /** Those that are stirred by another's turn get theirs in this round. */
  #round(): void {
    const busy = this.#busy
    for (let i = 0; i < this.#busyCount; i++) {
      const task = busy[i]
      if (task !== undefined && task.turn() !== 'more') this.rest(task)
    }
    let left = 0
    for (let i = 0; i < this.#busyCount; i++) {
      const task = busy[i]
      if (task === undefined) continue
      busy[i] = undefined
      task.place = left
      busy[left++] = task
    }
    this.#busyCount = left
  }

  #timeoutMs(): number {
    const now = performance.now()
    let timeoutMs = -1
    for (const hook of this.#beforeWaiting) timeoutMs = sooner(timeoutMs, hook(now))
    return this.#busyCount > 0 ? 0 : timeoutMs
  }

  /** After all events of a wait: what closes a descriptor here must not leave one of its events to whatever gets its number. */
  #heedWakes(): void {
    if (!this.#woken) return
    this.#woken = false
    drainWakes(this.#wakeFd)
    this.#onWake()
  }

  #onEvent(fd: number, events: number): void {
    if (fd === this.#wakeFd) {
      this.#woken = true
      return
    }
    const watched = this.#watched[fd]
    if (watched === undefined) return
    watched.port.on(events)
    this.stir(watched.task)
  }
}
