import { Agent, get } from 'node:http'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { type Nat, natOf, type Sighting } from '#shared/nat.ts'
import { decodeAddress, observedPath } from '#shared/wire.ts'
import type { ServerAddress } from '../config.ts'
import { fromFreePort } from './local-port.ts'

const deadlineMs = 3_000
const maxAnswerBytes = 1_024
/** After the server was reached; all pods of a site may come back at once. In ms. */
const [soonestMs, latestMs] = [500, 3_000]

/**
 * Measures what is between the pod and the internet: from one local port it asks two servers where they see it. Who knows
 * one server only has to guess by the port (`natOf`).
 */
export class NatCheck {
  readonly #servers: readonly ServerAddress[]
  readonly #podIPs: readonly string[]
  readonly #signal: AbortSignal
  readonly #log: Logger
  #measured: Nat | undefined
  #round = 0

  constructor(options: {
    servers: readonly ServerAddress[]
    podIPs: readonly string[]
    signal: AbortSignal
    log: Logger
  }) {
    this.#servers = options.servers
    this.#podIPs = options.podIPs
    this.#signal = options.signal
    this.#log = options.log
  }

  /** Undefined until it was measured, and where it cannot be. */
  get measured(): Nat | undefined {
    return this.#measured
  }

  /** To be called whenever the pod has come back to a server: it may be on another network now. Never rejects. */
  async renew(): Promise<void> {
    this.#measured = undefined
    const round = ++this.#round
    const places = placesOf(this.#servers)
    if (places === undefined) return
    try {
      await pause(soonestMs + Math.random() * (latestMs - soonestMs), this.#signal)
      if (this.#signal.aborted || round !== this.#round) return
      const nat = natOf(await sightingsFrom(places), this.#podIPs)
      if (round === this.#round) this.#measured = nat
      this.#log.debug({ nat }, 'measured the NAT')
    } catch (error) {
      this.#log.debug({ error: sentenceOf(error) }, 'cannot measure the NAT')
    }
  }
}

/** Two servers to be seen from, at two hosts where possible: some NATs tell hosts apart and not ports. */
export function placesOf(servers: readonly ServerAddress[]): [ServerAddress, ServerAddress] | undefined {
  const [first, ...others] = servers
  const second = others.find((s) => s.host !== first?.host) ?? others.find((s) => s.port !== first?.port)
  return first === undefined || second === undefined ? undefined : [first, second]
}

/** Where each sees us come from, of one local port. The connections are open together, so that no mapping is over. */
function sightingsFrom(places: readonly ServerAddress[]): Promise<Sighting[]> {
  return fromFreePort(async (localPort) => {
    const agent = new Agent({ keepAlive: true })
    try {
      const sightings: Sighting[] = []
      for (const place of places) sightings.push({ localPort, observed: await ask(place, localPort, agent) })
      return sightings
    } finally {
      agent.destroy()
    }
  })
}

function ask({ host, port }: ServerAddress, localPort: number, agent: Agent) {
  const { promise, resolve, reject } = Promise.withResolvers<ReturnType<typeof decodeAddress>>()
  const signal = AbortSignal.timeout(deadlineMs)
  const request = get({ host, port, path: observedPath, localPort, agent, signal }, (response) => {
    let text = ''
    response.setEncoding('latin1').on('data', (chunk: string) => {
      text += chunk
      if (text.length > maxAnswerBytes) request.destroy(new Error('the answer is too long'))
    })
    response.once('error', reject)
    response.once('end', () => {
      try {
        if (response.statusCode !== 200)
          throw new EdgeMeshError('unreachable', `Cannot ask ${host}: it answers ${response.statusCode}.`)
        resolve(decodeAddress(text))
      } catch (error) {
        reject(error)
      }
    })
  })
  request.once('error', reject)
  return promise
}
