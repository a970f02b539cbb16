-- Relative paths start from the directory in which submit is run.
CREATE EXTERNAL TABLE lineitem STORED AS PARQUET LOCATION 'lineitem/';
CREATE EXTERNAL TABLE orders   STORED AS PARQUET LOCATION 'orders/';
CREATE EXTERNAL TABLE customer STORED AS PARQUET LOCATION 'customer/';
CREATE EXTERNAL TABLE nation   STORED AS PARQUET LOCATION 'nation/';

-- The pricing summary report: what was billed, shipped and returned up to 2 September 1998.
SELECT
    l_returnflag,
    l_linestatus,
    sum(l_quantity)                                       AS quantity,
    sum(l_extendedprice)                                  AS base_price,
    sum(l_extendedprice * (1 - l_discount))               AS discounted_price,
    sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)) AS charge,
    avg(l_discount)                                       AS average_discount,
    count(*)                                              AS line_items
FROM lineitem
WHERE l_shipdate <= DATE '1998-09-02'
GROUP BY l_returnflag, l_linestatus
ORDER BY l_returnflag, l_linestatus;

-- The nations whose customers brought in most in 1995: three joins across the executors.
SELECT
    n_name                                  AS nation,
    count(DISTINCT o_orderkey)              AS orders,
    sum(l_extendedprice * (1 - l_discount)) AS revenue
FROM customer
JOIN nation   ON n_nationkey = c_nationkey
JOIN orders   ON o_custkey = c_custkey
JOIN lineitem ON l_orderkey = o_orderkey
WHERE o_orderdate >= DATE '1995-01-01' AND o_orderdate < DATE '1996-01-01'
GROUP BY n_name
ORDER BY revenue DESC
LIMIT 5;
