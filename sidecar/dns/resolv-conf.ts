import { isIP } from 'node:net'

/** glibc uses three servers; more are kept for those who list them, within reason. */
const maxServers = 8

export interface ResolvConf {
  servers: string[]
  search: string[]
  ndots: number
}

/** Reads resolv.conf(5): unknown lines are ignored, the last `search` (or `domain`) counts. */
export function parseResolvConf(text: string): ResolvConf {
  const conf: ResolvConf = { servers: [], search: [], ndots: 1 }
  for (const line of text.split('\n')) {
    const [keyword, ...values] = line
      .replace(/[#;].*/, '')
      .trim()
      .split(/\s+/)
    if (keyword === 'nameserver') {
      const address = values[0]?.replace(/%.*/, '') ?? ''
      if (isIP(address) !== 0 && conf.servers.length < maxServers) conf.servers.push(address)
    } else if (keyword === 'search' || keyword === 'domain') conf.search = values
    else if (keyword === 'options') {
      const ndots = values.map((v) => /^ndots:(\d+)$/.exec(v)?.[1]).find((n) => n !== undefined)
      if (ndots !== undefined) conf.ndots = Math.min(Number(ndots), 15)
    }
  }
  return conf
}
