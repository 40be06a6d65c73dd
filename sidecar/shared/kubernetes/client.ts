import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { Agent, type RequestOptions, request } from 'node:https'
import { createInterface } from 'node:readline'
// By its file: the package's index loads every generated API class, 80 MB of memory.
import { KubeConfig } from '@kubernetes/client-node/dist/config.js'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'

const requestDeadlineMs = 15_000
/** Bookmarks come about each minute; a watch that is silent for longer than this has lost its connection. */
const watchSilenceMs = 150_000
const maxBodyBytes = 256 * 1024 * 1024

/** What the API server refused, with its HTTP status (0: it was not reached). */
export class KubernetesError extends EdgeMeshError {
  readonly status: number

  constructor(status: number, message: string, cause?: unknown) {
    super('kubernetes', message, cause)
    this.name = 'KubernetesError'
    this.status = status
  }
}

/** Metadata that every object has; other fields are read by whoever asks for the object. */
export interface KubernetesObject {
  apiVersion?: string
  kind?: string
  metadata: {
    name: string
    namespace?: string
    uid?: string
    resourceVersion?: string
    creationTimestamp?: string
    labels?: Record<string, string>
    annotations?: Record<string, string>
  }
}

export interface ListPage<T> {
  metadata?: { resourceVersion?: string; continue?: string }
  items?: T[]
}

export interface WatchEvent<T> {
  type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR'
  object: T
}

export type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
export type Query = Record<string, string | number | boolean | undefined>

export interface KubernetesClientOptions {
  /** Called for each request with what became of it: a status, or `failed`. */
  onRequest?: (method: Method | 'WATCH', outcome: string) => void
}

/**
 * Requests to the API server as JSON. Who we are, whom we trust and where the API server is comes from client-node's
 * KubeConfig: the pod's service account, $KUBECONFIG or ~/.kube/config.
 */
export class KubernetesClient {
  readonly #config: KubeConfig
  readonly #onRequest: NonNullable<KubernetesClientOptions['onRequest']>
  #agent: Agent | undefined

  private constructor(config: KubeConfig, options: KubernetesClientOptions) {
    this.#config = config
    this.#onRequest = options.onRequest ?? (() => undefined)
  }

  /** `bad-config` where there is no usable configuration. */
  static load(
    kubeconfig?: { file?: string | undefined; context?: string | undefined },
    options: KubernetesClientOptions = {},
  ): KubernetesClient {
    const config = new KubeConfig()
    try {
      if (kubeconfig?.file !== undefined) config.loadFromFile(kubeconfig.file)
      else config.loadFromDefault()
      if (kubeconfig?.context !== undefined) config.setCurrentContext(kubeconfig.context)
    } catch (error) {
      throw new EdgeMeshError('bad-config', `Cannot read the kubeconfig: ${sentenceOf(error)}.`, error)
    }
    if (!config.getCurrentCluster()?.server.startsWith('https:')) {
      throw new EdgeMeshError(
        'bad-config',
        'Cannot find the API server: run in a pod with a service account, set KUBECONFIG, or name a file with --kubeconfig.',
      )
    }
    return new KubernetesClient(config, options)
  }

  get server(): string {
    return this.#config.getCurrentCluster()?.server ?? ''
  }

  get<T = KubernetesObject>(path: string, query?: Query): Promise<T> {
    return this.request<T>('GET', path, { query })
  }

  /** The object, or undefined where there is none. */
  async find<T = KubernetesObject>(path: string): Promise<T | undefined> {
    try {
      return await this.get<T>(path)
    } catch (error) {
      if (error instanceof KubernetesError && error.status === 404) return undefined
      throw error
    }
  }

  /** A KubernetesError has the API server's own sentence. */
  async request<T = KubernetesObject>(
    method: Method,
    path: string,
    options: { body?: object; query?: Query | undefined; contentType?: string; deadlineMs?: number } = {},
  ): Promise<T> {
    const body = options.body === undefined ? undefined : JSON.stringify(options.body)
    const signal = AbortSignal.timeout(options.deadlineMs ?? requestDeadlineMs)
    const response = await this.#send(method, path, options.query, signal, body, options.contentType)
    const text = await readBody(response)
    this.#onRequest(method, String(response.statusCode))
    const status = response.statusCode ?? 0
    if (status >= 200 && status < 300) return JSON.parse(text) as T
    throw new KubernetesError(
      status,
      `Cannot ${method} ${path}: the API server says ${status}: ${reasonOf(text)}.`,
    )
  }

  /** All pages of a list; returns the version from which to watch. */
  async list<T>(path: string, query: Query, each: (item: T) => void): Promise<string> {
    for (let next: string | undefined; ; ) {
      const page: ListPage<T> = await this.get(path, { ...query, limit: 500, continue: next })
      for (const item of page.items ?? []) each(item)
      next = page.metadata?.continue || undefined
      if (next === undefined) return page.metadata?.resourceVersion ?? ''
    }
  }

  /** Calls `onEvent` for each event until the API server ends the watch; rejects when it breaks. */
  async watch<T>(
    path: string,
    query: Query,
    onEvent: (event: WatchEvent<T>) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const whole = { ...query, watch: true, allowWatchBookmarks: true }
    const connect = AbortSignal.any([signal, AbortSignal.timeout(requestDeadlineMs)])
    const response = await this.#send('GET', path, whole, connect, undefined, undefined, signal)
    this.#onRequest('WATCH', String(response.statusCode))
    if (response.statusCode !== 200) {
      throw new KubernetesError(
        response.statusCode ?? 0,
        `Cannot watch ${path}: the API server says ${response.statusCode}: ${reasonOf(await readBody(response))}.`,
      )
    }
    response.socket.setTimeout(watchSilenceMs, () => response.destroy(new Error('the watch fell silent')))
    const lines = createInterface({ input: response })
    const broken = Promise.withResolvers<never>()
    lines.on('line', (line) => {
      try {
        onEvent(JSON.parse(line) as WatchEvent<T>)
      } catch (error) {
        broken.reject(error)
      }
    })
    const ended = once(lines, 'close')
    response.once('error', broken.reject)
    try {
      await Promise.race([ended, broken.promise])
    } finally {
      lines.close()
      response.destroy()
    }
  }

  async #send(
    method: Method,
    path: string,
    query: Query = {},
    connectSignal: AbortSignal,
    body?: string,
    contentType = 'application/json',
    signal = connectSignal,
  ): Promise<IncomingMessage> {
    const url = new URL(this.server + path)
    for (const [key, value] of Object.entries(query))
      if (value !== undefined) url.searchParams.set(key, String(value))
    const options: RequestOptions = { method, headers: { accept: 'application/json' } }
    try {
      await this.#config.applyToHTTPSOptions(options)
      this.#keepAlive(options)
      if (body !== undefined)
        options.headers = {
          ...options.headers,
          'content-type': contentType,
          'content-length': Buffer.byteLength(body),
        }
      const sent = request(url, options)
      const abort = () => sent.destroy(connectSignal.reason ?? signal.reason)
      connectSignal.addEventListener('abort', abort, { once: true })
      sent.end(body)
      const [response] = (await once(sent, 'response')) as [IncomingMessage]
      // A watch has no deadline after its headers, only the caller's signal.
      if (signal !== connectSignal) {
        connectSignal.removeEventListener('abort', abort)
        signal.addEventListener('abort', () => response.destroy(), { once: true })
      }
      return response
    } catch (error) {
      this.#onRequest(method, 'failed')
      throw new KubernetesError(
        0,
        `Cannot reach the API server at ${this.server}: ${sentenceOf(error)}.`,
        error,
      )
    }
  }

  /** client-node's agent opens a connection for each request; ours keeps them, but leaves a proxy's agent alone. */
  #keepAlive(options: RequestOptions): void {
    if (this.#config.getCurrentCluster()?.proxyUrl) return
    this.#agent ??= new Agent({ keepAlive: true, maxSockets: 32, scheduling: 'lifo' })
    options.agent = this.#agent
  }
}

async function readBody(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of response) {
    bytes += (chunk as Buffer).length
    if (bytes > maxBodyBytes) throw new KubernetesError(0, 'Cannot read the answer: it is too large.')
    chunks.push(chunk as Buffer)
  }
  return Buffer.concat(chunks).toString()
}

/** The sentence of a Status object, else the text as it is. */
function reasonOf(text: string): string {
  try {
    const status = JSON.parse(text) as { message?: unknown }
    if (typeof status.message === 'string') return status.message
  } catch {
    // not JSON: a proxy's page
  }
  return text.slice(0, 300)
}
