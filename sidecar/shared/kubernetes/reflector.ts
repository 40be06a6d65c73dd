import { sentenceOf } from '#shared/errors.ts'
import { fullJitter, pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { type KubernetesClient, KubernetesError, type KubernetesObject, type Query } from './client.ts'

const backoffBaseMs = 500
const backoffCapMs = 15_000
/** The API server ends a watch after so long, jittered, so that watches do not end together. */
const watchSeconds = 300

export interface ReflectorOptions<T> {
  client: KubernetesClient
  /** `/api/v1/services` */
  path: string
  query?: Query
  /** What is kept of an object; the rest is let go at once. Undefined: nothing. */
  keep: (object: KubernetesObject) => T | undefined
  /** Called after each change, and after a list that differs. */
  onChange: () => void
  log: Logger
}

/**
 * Keeps up with one kind of objects: a list, then a watch from its version with bookmarks; a watch that ends goes on
 * where it was, one that is too old (410) begins with a new list, and failures wait with full jitter. Unlike client-node's informer
 * it keeps of each object only what is wanted, and the last good state stays while the API server is away.
 */
export class Reflector<T> {
  readonly #options: ReflectorOptions<T>
  readonly #aborter = new AbortController()
  readonly #synced = Promise.withResolvers<void>()
  #objects = new Map<string, T>()
  #version = ''
  #running: Promise<void> | undefined
  /** Lists that have been made; for tests and metrics. */
  lists = 0
  /** Whether the last list or watch is in order. */
  current = false

  constructor(options: ReflectorOptions<T>) {
    this.#options = options
  }

  /** By `namespace/name`. */
  get objects(): ReadonlyMap<string, T> {
    return this.#objects
  }

  /** Resolves after the first list. */
  start(): Promise<void> {
    this.#running ??= this.#run()
    return this.#synced.promise
  }

  async close(): Promise<void> {
    this.#aborter.abort()
    await this.#running
  }

  async #run(): Promise<void> {
    const { signal } = this.#aborter
    const { log, path } = this.#options
    for (let attempt = 0; !signal.aborted; ) {
      const began = performance.now()
      try {
        if (this.#version === '') await this.#list()
        this.current = true
        await this.#watch(signal)
        attempt = 0
      } catch (error) {
        if (signal.aborted) return
        this.current = false
        if (error instanceof KubernetesError && error.status === 410) this.#version = ''
        if (performance.now() - began > backoffCapMs) attempt = 0
        log.warn({ path, attempt, error: sentenceOf(error) }, 'cannot follow the API server; trying again')
        await pause(backoffBaseMs / 2 + fullJitter(attempt++, backoffBaseMs, backoffCapMs), signal)
      }
    }
  }

  async #list(): Promise<void> {
    const { client, path, query = {}, keep, onChange } = this.#options
    const objects = new Map<string, T>()
    this.#version = await client.list<KubernetesObject>(path, query, (object) => {
      const kept = keep(object)
      if (kept !== undefined) objects.set(keyOf(object), kept)
    })
    this.lists++
    this.#objects = objects
    this.#synced.resolve()
    onChange()
  }

  async #watch(signal: AbortSignal): Promise<void> {
    const { client, path, query = {}, keep, onChange } = this.#options
    const timeoutSeconds = Math.ceil(watchSeconds * (1 + Math.random()))
    let expired: KubernetesError | undefined
    await client.watch<KubernetesObject & { code?: number; message?: string }>(
      path,
      { ...query, resourceVersion: this.#version, timeoutSeconds },
      ({ type, object }) => {
        if (type === 'ERROR') {
          expired = new KubernetesError(object.code ?? 0, `Cannot go on watching ${path}: ${object.message}.`)
          return
        }
        this.#version = object.metadata.resourceVersion ?? this.#version
        if (type === 'BOOKMARK') return
        const kept = type === 'DELETED' ? undefined : keep(object)
        if (kept === undefined) this.#objects.delete(keyOf(object))
        else this.#objects.set(keyOf(object), kept)
        onChange()
      },
      signal,
    )
    if (expired !== undefined) throw expired
  }
}

function keyOf({ metadata }: KubernetesObject): string {
  return `${metadata.namespace ?? ''}/${metadata.name}`
}
