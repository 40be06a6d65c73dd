import { describe, expect, it } from 'vitest'
import { readConfig } from '../../sidecar/config.ts'

const least = {
  POD_UID: 'u',
  POD_NAME: 'p',
  POD_NAMESPACE: 'n',
  POD_IPS: '10.0.0.1',
  EDGEMESH_SERVER: 'server',
}

describe('the settings of the sidecar', () => {
  it('need only who the pod is and where the server is', () => {
    expect(readConfig(least)).toMatchObject({
      podIPs: ['10.0.0.1'],
      servers: [{ host: 'server', port: 20_004 }],
      trustDomain: 'cluster.local',
      logLevel: 'info',
      adminPort: 20_007,
      drainMs: 25_000,
    })
  })

  it('take several servers, with ports and IPv6', () => {
    const { servers } = readConfig({ ...least, EDGEMESH_SERVER: '203.0.113.1:1, [fd00::1]:2,relay.example' })
    expect(servers).toEqual([
      { host: '203.0.113.1', port: 1 },
      { host: 'fd00::1', port: 2 },
      { host: 'relay.example', port: 20_004 },
    ])
  })

  it.each([
    ['POD_UID', ''],
    ['POD_IPS', '10.0.0'],
    ['POD_IPS', '10.0.0.1,10.0.0.2,10.0.0.3'],
    ['EDGEMESH_SERVER', 'https://server'],
    ['EDGEMESH_SERVER', 'server:0'],
    ['EDGEMESH_SERVER', 'server:70000'],
    ['EDGEMESH_SERVER', 'server,'],
    ['EDGEMESH_LOG_LEVEL', 'loud'],
    ['EDGEMESH_ADMIN_PORT', '80x'],
    ['EDGEMESH_ADMIN_PORT', '70000'],
    ['EDGEMESH_DRAIN_SECONDS', '-1'],
  ])('refuse %s "%s" by name', (name, value) => {
    expect(() => readConfig({ ...least, [name]: value })).toThrow(
      new RegExp(`Cannot start: ${name} .*: it must|each`),
    )
  })
})
