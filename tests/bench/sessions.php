<?php
// SPDX-License-Identifier: GPL-3.0-or-later
// Candidate "php": what one would write for a shared host. A persistent connection keeps its prepared statement.

function lookup(array $key): array|false
{
    $database = pg_pconnect(getenv('DATABASE'));
    $result = @pg_execute($database, 'lookup', $key);
    if (!$result) {
        pg_prepare($database, 'lookup', file_get_contents(getenv('STATEMENT')));
        $result = pg_execute($database, 'lookup', $key);
    }
    return pg_fetch_assoc($result);
}

function reply(int $status, array $body): void
{
    $json = json_encode($body);
    http_response_code($status);
    header('Content-Type: application/json');
    header('Access-Control-Allow-Origin: *');
    header('Access-Control-Expose-Headers: *');
    header('Cache-Control: no-store');
    header('Content-Length: ' . strlen($json));
    echo $json;
}

$path = explode('?', $_SERVER['REQUEST_URI'])[0];
$url = $_GET['fulfillment_url'] ?? '';
if (!preg_match('#/instances/([^/]+)/sessions/([^/]+)$#', $path, $part) || $url === '') {
    reply(400, ['code' => 26]);
    return;
}
$order = lookup([rawurldecode($part[1]), $url, rawurldecode($part[2])]);
if (!$order) {
    reply(404, ['code' => 2038]);
    return;
}
reply($order['paid'] === 't' ? 200 : 202, ['order_id' => $order['order_id']]);
