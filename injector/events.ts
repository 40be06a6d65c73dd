import { sentenceOf } from '#shared/errors.ts'
import type { KubernetesClient } from '#shared/kubernetes/client.ts'
import type { Logger } from '#shared/log.ts'
import type { Pod } from './pod.ts'

const component = 'edgemesh-injector'
/** The same thing is said again of the same owner after so long, in ms. */
const quietMs = 10 * 60_000
const maxKnown = 2_000
const maxInFlight = 20

/** Tells the owners of pods (else the pods) what became of them, as Kubernetes events. Best effort, bounded. */
export class Events {
  readonly #client: KubernetesClient
  readonly #log: Logger
  /** What was said, and when; the oldest first. */
  readonly #said = new Map<string, number>()
  #inFlight = 0

  constructor(client: KubernetesClient, log: Logger) {
    this.#client = client
    this.#log = log
  }

  say(pod: Pod, namespace: string, type: 'Normal' | 'Warning', reason: string, message: string): void {
    const owner = pod.metadata.ownerReferences?.find((o) => o.controller) ?? pod.metadata.ownerReferences?.[0]
    const name = owner?.name ?? pod.metadata.name ?? pod.metadata.generateName ?? 'unnamed'
    const key = `${namespace} ${owner?.uid ?? name} ${reason} ${message}`
    const last = this.#said.get(key)
    if ((last !== undefined && Date.now() - last < quietMs) || this.#inFlight >= maxInFlight) return
    this.#said.delete(key)
    this.#said.set(key, Date.now())
    const [oldest] = this.#said.keys()
    if (this.#said.size > maxKnown && oldest !== undefined) this.#said.delete(oldest)
    const now = new Date().toISOString()
    const body = {
      apiVersion: 'v1',
      kind: 'Event',
      metadata: { generateName: `${name.slice(0, 40)}.edgemesh.`.replaceAll('..', '.'), namespace },
      involvedObject: {
        apiVersion: owner?.apiVersion ?? 'v1',
        kind: owner?.kind ?? 'Pod',
        name,
        namespace,
        ...(owner === undefined ? {} : { uid: owner.uid }),
      },
      ...{ type, reason, message, firstTimestamp: now, lastTimestamp: now, count: 1 },
      source: { component },
      reportingComponent: component,
    }
    this.#inFlight++
    this.#client
      .request('POST', `/api/v1/namespaces/${namespace}/events`, { body, deadlineMs: 5_000 })
      .catch((error) => this.#log.warn({ error: sentenceOf(error) }, 'cannot write an event'))
      .finally(() => this.#inFlight--)
  }
}
