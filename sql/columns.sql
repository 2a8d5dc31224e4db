-- SPDX-License-Identifier: GPL-3.0-or-later
-- The columns that a lookup reads, as a part of a WITH clause: the only list of them for the program. role.sql has another
-- one, since an operator runs it alone; a test compares the two.
wanted (place, tab, col) AS (VALUES
    (1, 'merchant_instances', 'merchant_serial'),
    (2, 'merchant_instances', 'merchant_id'),
    (3, 'merchant_contract_terms', 'merchant_serial'),
    (4, 'merchant_contract_terms', 'order_serial'),
    (5, 'merchant_contract_terms', 'order_id'),
    (6, 'merchant_contract_terms', 'creation_time'),
    (7, 'merchant_contract_terms', 'paid'),
    (8, 'merchant_contract_terms', 'fulfillment_url'),
    (9, 'merchant_contract_terms', 'session_id'),
    (10, 'merchant_orders', 'merchant_serial'),
    (11, 'merchant_orders', 'order_serial'),
    (12, 'merchant_orders', 'order_id'),
    (13, 'merchant_orders', 'creation_time'),
    (14, 'merchant_orders', 'fulfillment_url'),
    (15, 'merchant_orders', 'session_id')
)
